"""The subcommands of ``workbench``, one module each: ``NAME``, ``HELP``, ``add_arguments(parser)``, ``run(arguments)``.

To add one, write its module and name it in ``COMMANDS``. ``run`` returns the exit code and imports what it needs.
"""

from workbench.cli.commands import (
    attach,
    control,
    data,
    debug,
    demo,
    doctor,
    env,
    export,
    frameworks,
    lab,
    new,
    plans,
    report,
    runs,
    sweep,
    train,
    verify,
    watch,
    why,
)

COMMANDS = (
    demo,
    lab,
    new,
    plans,
    train,
    attach,
    verify,
    watch,
    why,
    debug,
    control,
    sweep,
    report,
    runs,
    export,
    data,
    frameworks,
    env,
    doctor,
)
