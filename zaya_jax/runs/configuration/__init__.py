"""From a config file to a run's settings, in one pass.

The flags and the file make a ConfigDict (config_files); one reader turns it into dataclasses that check their own
fields (reader, tree); what these name is found (mixture, stage, settings); and one list of checks holds the parts
against each other (cross_checks).

Imports every package but command_line, and nothing else of runs.
"""
