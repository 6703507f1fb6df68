"""The library logs to the standard logger, is silent until asked, and the commands show what they always showed."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

from command import call
from listening import Heard

from regnet_itk.cli.run_log import LogToScreen
from regnet_itk.cli.screen import Screen
from regnet_itk.events import LOGGER, Events, PrefixedLog, Progress
from regnet_itk.registration_events import StageEvents, WayBackEvents
from regnet_itk.run_log import RunLog, heard_by


def test_the_library_is_silent_until_asked():
    script = (
        "import regnet_itk.events, logging\n"
        "log = regnet_itk.events.Events().log\n"
        "log.warning('a warning')\n"
        "logging.getLogger('regnet_itk.data.landmarks').warning('another')\n"
        "logging.basicConfig(format='%(levelname)s %(message)s')\n"
        "log.info('not asked for')\n"
        "log.warning('asked for')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("", "WARNING asked for\n")


def test_lines_are_kept_with_their_times_and_warnings_shown(capfd):
    log = RunLog(Screen("warning"))
    before = list(LOGGER.handlers), LOGGER.level
    with heard_by(log):
        Events().log.debug("a detail of 100 %s")
        logging.getLogger("regnet_itk.any.room").warning("mind %d", 3)
        log.say("reached")
    LOGGER.warning("later")
    assert [line[11:] for line in log.lines] == ["a detail of 100 %s", "warning: mind 3", "reached"]
    assert all(line[0] == "[" and line[9] == "]" for line in log.lines)
    assert capfd.readouterr().err == "warning: mind 3\n"
    assert (list(LOGGER.handlers), LOGGER.level) == before


def test_the_screen_shows_what_was_reached(capfd):
    for level, shown in (("info", ["one", "warning: two"]), ("warning", ["warning: two"]), ("error", []), ("off", [])):
        with heard_by(LogToScreen(Screen(level))):
            LOGGER.debug("nothing")
            LOGGER.info("one")
            LOGGER.warning("two")
        assert capfd.readouterr().err.splitlines() == shown


def test_what_is_told_is_passed_on():
    heard = Heard()
    back = WayBackEvents(heard, 2)
    stage = StageEvents(back, 1, "RegNet x")
    stage.progress(Progress(0.5, "half"))
    stage.log.warning("of %s", "it")
    PrefixedLog(stage.log, "deeper: ").info("100 %")
    assert heard.progresses == [Progress(0.5, "half", 3, "backward RegNet x")]
    assert heard.lines == ["backward: of it", "backward: deeper: 100 %"]
    assert heard.warnings == ["backward: of it"]


def test_every_command_shows_the_warnings_of_the_library(tmp_path, capfd):
    markups = {"type": "markups", "position": [1, 2, 3], "positionStatus": "defined", "label": "a", "id": "1"}
    never = {**markups, "positionStatus": "undefined", "label": "b", "id": "2"}
    content = {"markups": [{"type": "Fiducial", "coordinateSystem": "LPS", "controlPoints": [markups, never]}]}
    (tmp_path / "p.mrk.json").write_text(json.dumps(content))
    assert call("info", tmp_path / "p.mrk.json") == 0
    assert "warning: " in capfd.readouterr().err


def test_registrations_at_the_same_time_have_logs_of_their_own(capfd, caplog):
    from regnet_itk.interfaces.itk_elastix import _Lines, _Told

    told = [_Told(_Lines(False), lambda now: None) for _ in range(2)]
    told[0].log.debug("to the first")
    told[1].log.warning("to the second")
    assert [one.log.handlers[0].lines for one in told] == [["to the first"], ["warning: to the second"]]
    assert caplog.messages == ["to the second"]  # the library's logger has what its level lets through
