"""Doses and structures of radiotherapy, carried from the scan they were made on to another one."""
