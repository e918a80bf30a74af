"""A command among the others, and the same as a function of Python.

Its messages name its options, and its help what can be chosen.
"""

from __future__ import annotations

import inspect
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer import BadParameter
from typer.core import TyperArgument, TyperCommand

from fx.output import as_function

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from extract.registry import Registry

# `size`, or `weights=random`; not what a file's name may hold between two such marks
_PARAMETER = re.compile(r"(?<![^\s(])`([a-z][a-z0-9_]*)(?:=([^`]*))?`(?![^\s;,.:)])")

# of the command that is running: each parameter's option
_options: dict[str, str] = {}

# of how a terminal shows the result, which Python gets
_OF_THE_TERMINAL = ("json_", "debug", "per_class")


class Command(TyperCommand):
    """A command of ``fx``."""

    def choices(self) -> Mapping[str, Registry[Any]]:
        """Registries that the help lists, each below a heading."""
        return {}

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "" in args:  # as a path it would be this folder
            ctx.fail("an argument is empty, as a shell's variable without a value is")
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        _options.clear()
        for parameter in self.params:
            for option in parameter.opts:
                if option.startswith("--") and parameter.name:
                    _options[parameter.name] = option
                    _options[option.removeprefix("--").replace("-", "_")] = option
        try:
            return super().invoke(ctx)
        except EOFError as error:
            # typer would take it for the end of a dialogue
            raise ValueError(f"a file ends too early: {error}") from error

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        for heading, registry in self.choices().items():
            with formatter.section(heading):
                formatter.write_dl([(name, registry.help(name)) for name in registry])
        super().format_epilog(ctx, formatter)


def with_options(message: str) -> str:
    """Name the running command's options where a message names the library's parameters.

    The library writes them in back-quotes: `` `size` `` becomes ``--size``, and
    `` `weights=random` `` ``--weights random``. Of what the command has no option for, the
    back-quotes alone are dropped.
    """

    def as_option(found: re.Match[str]) -> str:
        name, value = found.groups()
        if name not in _options:
            return found[0].strip("`")
        return _options[name] if value is None else f"{_options[name]} {value}"

    return _PARAMETER.sub(as_option, message)


def function_of(command: TyperCommand) -> Callable[..., Any]:
    """Make a function of a command: its options are keywords, and it returns the record.

    Values are those of the command line, as text or as Python has them: numbers, paths, True for a
    flag, lists where there may be several; None is the default. The function raises ValueError
    where an option cannot have a value, else what the command ends with.
    """
    function: Any = command.callback
    parameters = {str(p.name): p for p in command.params if p.name not in _OF_THE_TERMINAL}
    # of one parameter in the place of its option, in what is wrong with a value
    names = {p.opts[0]: name for name, p in parameters.items()}
    signature = _signature(function, parameters)

    def call(*args: Any, **kwargs: Any) -> Any:
        words, positional = [], []
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            option = parameters[name].opts[0]
            if isinstance(parameters[name], TyperArgument):
                positional.append(_word(value))
            elif value is True:
                words.append(option)
            elif value is not None and value is not False:
                words.append(f"{option}={_word(value)}")
        with as_function():
            try:
                with command.make_context(command.name, [*words, "--", *positional]) as context:
                    return command.invoke(context)
            except BadParameter as error:
                message = error.format_message()
                raise ValueError(
                    re.sub(r"--[a-z][a-z-]*", lambda found: names.get(found[0], found[0]), message)
                ) from None

    call.__name__ = call.__qualname__ = function.__name__
    call.__doc__ = _documentation(command, signature, parameters)
    call.__signature__ = signature  # type: ignore[attr-defined]
    return call


def _signature(function: Any, parameters: Mapping[str, Any]) -> inspect.Signature:
    """That of a command's function, with arguments by position and options by name."""
    shown = []
    for name, one in inspect.signature(function, eval_str=True).parameters.items():
        if name not in parameters:
            continue
        by_position = isinstance(parameters[name], TyperArgument)
        shown.append(
            inspect.Parameter(
                name,
                one.POSITIONAL_OR_KEYWORD if by_position else one.KEYWORD_ONLY,
                default=str(one.default) if isinstance(one.default, Path) else one.default,
                annotation=one.annotation.__origin__,
            )
        )
    return inspect.Signature(shown)


def _documentation(
    command: TyperCommand, signature: inspect.Signature, parameters: Mapping[str, Any]
) -> str:
    """The command's help, as a docstring."""
    lines = [command.help or "", "", "Parameters", "----------"]
    for name, one in signature.parameters.items():
        kind = inspect.formatannotation(one.annotation).replace("pathlib.", "")
        lines += [f"{name} : {kind}", f"    {parameters[name].help}"]
    choices: Any = getattr(command, "choices", dict)
    for heading, registry in choices().items():
        lines += ["", heading, "-" * len(heading)]
        lines += [f"{name} : {registry.help(name)}" for name in registry]
    return "\n".join(lines)


def _word(value: object) -> str:
    """Write a value as the command line has it."""
    if isinstance(value, list | tuple):
        return ",".join(map(_word, value))
    return os.fspath(value) if isinstance(value, os.PathLike) else str(value)
