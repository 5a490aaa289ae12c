"""The command line of the node: configuration → help, check, or the node itself."""

from __future__ import annotations

import argparse
from typing import NoReturn

from loguru import logger

import config
from errors import ExitCode
from reporting.log import say_mistakes, set_up_log

_ABOUT = "Takes OpenAI chat-completion requests from a Pulsar topic, has a model answer them, delivers the answers."


def run(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="supervisor.py", description=_ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"environment:\n{config.help_text()}",
    )
    parser.add_argument("--check", action="store_true", help="validate, reach for Pulsar and the upstream, say what is found; exit 0 or 78")
    parser.add_argument("--env-example", action="store_true", help="print the text of .env.example")
    help_text = "one request's timeline, as the node that runs here tells it, or else its usage record"
    parser.add_argument("command", nargs="*", metavar="where REQUEST_ID", help=help_text)
    options = parser.parse_args(arguments)
    if options.command and (len(options.command) != 2 or options.command[0] != "where"):
        parser.error(f"{' '.join(options.command)!r} is no command: there is `where REQUEST_ID`, and no command at all for the node")
    if options.env_example:
        print(config.env_example(), end="")
        return ExitCode.OK
    try:
        settings = config.load()
    except config.ConfigurationMistakes as mistakes:
        say_mistakes(mistakes.mistakes)
        return ExitCode.CONFIGURATION
    if options.command:
        from messaging.client import leave
        from status.where import where

        leave(where(settings, options.command[1]))
    set_up_log(settings, "node")
    if options.check:
        from supervision.check import check

        return check(settings)
    _serve(settings)


def _serve(settings: config.Settings) -> NoReturn:
    """The node's life. Imported in the order in which it is needed: its first children boot while the rest is."""
    from ipc.spawned import signals_held
    from supervision.boot import boot

    with signals_held():  # until somebody listens to them: children are there from now on
        booted = boot(settings)
        try:
            from messaging.client import leave
            from supervision.node import Node

            node = Node(booted)
        except BaseException:
            booted.crew.kill_all()  # else they would be waited for, and some of them wait for this process
            raise
        node.hear_signals()
    code = node.run()
    logger.info("ended with exit code {}", int(code))
    leave(code)
