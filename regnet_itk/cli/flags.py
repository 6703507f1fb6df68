"""The flags that stand for arguments of the library.

The library's messages name its arguments, in backticks: "give it with `like`". Users of the command line read flags.
"""

from __future__ import annotations

import re

FLAGS = {
    "baseline": "--baseline",
    "bspline_spacing": "--bspline-spacing",
    "chains": "--method",
    "connected": "--connected",
    "default": "--default",
    "device": "--device",
    "error": "--error",
    "fixed": "-f",
    "fixed_date": "--fixed-date",
    "fixed_frame": "--fixed-frame",
    "fixed_ignore": "-fIgnore",
    "fixed_judge_landmarks": "-fpJudge",
    "fixed_label": "-fLabel",
    "fixed_landmarks": "-fp",
    "fixed_mask": "-fMask",
    "fixed_rigid": "-fRigid",
    "fixed_series": "--fixed-series",
    "fixed_session": "--fixed-session",
    "fixed_sliding": "-fSliding",
    "fixed_volume": "-fVolume",
    "images": "--images",
    "inhale": "--inhale",
    "initial": "-t0",
    "jobs": "--jobs",
    "label": "--label",
    "like": "--like",
    "masks": "--masks",
    "moving": "-m",
    "moving_date": "--moving-date",
    "moving_ignore": "-mIgnore",
    "moving_judge_landmarks": "-mpJudge",
    "moving_label": "-mLabel",
    "moving_landmarks": "-mp",
    "moving_mask": "-mMask",
    "moving_rigid": "-mRigid",
    "moving_series": "--moving-series",
    "moving_sliding": "-mSliding",
    "moving_volume": "-mVolume",
    "names": "--methods",
    "new": "--new",
    "offset": "--offset",
    "order": "--order",
    "part": "--part",
    "scheduler": "--scheduler",
    "scheduler_settings": "--scheduler-settings",
    "slices": "--slices",
    "spacing": "--spacing",
    "structures": "--structures",
    "vectors": "--nifti-vectors",
}


def name_flags(message: str) -> str:
    """Return a message of the library with flags in place of its arguments."""
    return re.sub(r"`(\w+)`", lambda found: FLAGS.get(found[1], found[0]), message)
