"""The subcommands of ``workbench``, one module each: ``NAME``, ``HELP``, ``add_arguments(parser)``, ``run(arguments)``.

To add one, write its module and name it in ``COMMANDS``. ``run`` returns the exit code and imports what it needs.
"""

from workbench.commands import control, demo, doctor, lab, report, runs, train

COMMANDS = (demo, lab, train, control, report, runs, doctor)
