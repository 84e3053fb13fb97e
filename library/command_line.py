"""The console command `wisparse`: plans and answers of any model, and doors to the suite's own commands."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from .kernels.program_end import MISTAKE, ends_in_one_line
from .method.errors import mistake

if TYPE_CHECKING:
    from .checkpoint import Recipe

SUITE_COMMANDS = {
    "run": ("wisparse.repro.run", "one cell or, with -m, a sweep; takes what repro/run.py takes"),
    "speed": ("wisparse.repro.speed.reproduce_speed", "decode and kernel speed on this machine, as tables"),
    "table": ("wisparse.repro.tables.make", "a table from records"),
    "report": ("wisparse.repro.report.page", "one page of all results"),
}
"""Commands that are another program's `main`, which reads sys.argv itself; they need the extra `suite`."""

EXTRAS = {"wandb": "wandb", "matplotlib": "report", "markdown_it": "report", "jinja2": "report"}
"""Extra that brings a package; all others come with `suite`."""

PLANNED = ("method", "sparsity", "search", "calibration")
"""Options that a plan is made with; one that is not given has the default of `Recipe`."""


@ends_in_one_line(mistake)
def main() -> None:
    """Run the command; a mistake ends it with one line and exit code 2."""
    if len(sys.argv) > 1 and sys.argv[1] in SUITE_COMMANDS:
        sys.exit(_suite_command(sys.argv[1]))
    arguments = _parser().parse_args()
    arguments.command(arguments)


def _suite_command(name: str) -> int | None:
    """Hand the rest of the command line over to the suite's program."""
    module = SUITE_COMMANDS[name][0]
    try:
        program = importlib.import_module(module)
        sys.argv = [f"wisparse {name}", *sys.argv[2:]]
        return program.main()
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package == "wisparse":
            raise
        extra = EXTRAS.get(package, "suite")
        install = f"pip install 'wisparse[{extra}]'"
        print(f"error: `wisparse {name}` needs the package {package}; install it: {install}", file=sys.stderr)
        return MISTAKE


class _Version(argparse.Action):
    """Says the version and ends; looked up there alone, since that takes longer than all of this module."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            found = version("wisparse")
        except PackageNotFoundError:
            found = "(a copy that is not installed)"
        print(f"wisparse {found}")
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="wisparse", description="Training-free activation sparsity for language models."
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="say the version and end")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add(commands, "methods", _methods, "every method by name, with its paper")
    plan = _add(commands, "plan", _plan, "make a plan for a model and save it")
    _add_plan_options(plan)
    plan.add_argument("--output", type=Path, required=True, help="where to: FILE.safetensors")
    generate = _add(
        commands, "generate", _generate, "the dense and the sparse answer to a prompt, side by side"
    )
    _add_plan_options(generate)
    generate.add_argument("prompt", help="text to continue; with a chat template, a user's message")
    generate.add_argument(
        "--plan", type=Path, help="a saved plan, in place of --method, --sparsity, --search, --calibration"
    )
    generate.add_argument("--new-tokens", type=int, default=100, help="tokens of the answer, at most (100)")
    generate.add_argument("--tokens", default="half", help="which tokens of the prompt are sparse (half)")
    generate.add_argument(
        "--raw", action="store_true", help="continue the prompt as it is, without a chat template"
    )
    for name, (_, help_line) in SUITE_COMMANDS.items():
        commands.add_parser(name, help=help_line, add_help=False)
    return parser


def _add(
    commands: argparse._SubParsersAction,
    name: str,
    function: Callable[[argparse.Namespace], None],
    help_line: str,
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=help_line, description=f"{help_line[0].upper()}{help_line[1:]}.")
    command.set_defaults(command=function)
    return command


def _add_plan_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model", required=True, help="folder of a checkpoint, a GGUF file, or a name on the hub"
    )
    command.add_argument("--method", help="see `wisparse methods` (wisparse)")
    command.add_argument("--sparsity", type=float, help="share of the block weights not read (0.5)")
    command.add_argument(
        "--calibration", type=Path, help="UTF-8 text; by default docstrings of Python's library"
    )
    command.add_argument("--search", help="budget of the searches: quick, medium or paper (quick)")
    command.add_argument("--device", help="cuda or cpu; by default a GPU where there is one")
    command.add_argument(
        "--dtype", help="float32, bfloat16 or float16; by default the checkpoint's own, on a CPU float32"
    )


def _methods(_: argparse.Namespace) -> None:
    from .catalogue import methods

    found = methods()
    width = max(map(len, found))
    for name, described in found.items():
        print(f"{name:<{width}}  {described.summary}")


def _plan(arguments: argparse.Namespace) -> None:
    from .checkpoint import calibrated_plan, load

    check_output(arguments.output)
    model, tokenizer = load(arguments.model, arguments.device, arguments.dtype)
    calibrated_plan(model, tokenizer, _recipe(arguments)).save(arguments.output)
    print(f"written: {arguments.output}")


def check_output(path: Path) -> None:
    """Refuse, before any work, a path that no plan can be written to. Raises UserError."""
    from .method.errors import UserError

    if path.suffix != ".safetensors":
        raise UserError(f"--output {path} does not end in .safetensors")
    if not path.absolute().parent.is_dir():
        raise UserError(f"--output {path}: there is no folder {path.absolute().parent}; make it first")
    if path.is_dir():
        raise UserError(f"--output {path} is a folder; a plan is one file: choose another name")
    if not os.access(path.absolute().parent, os.W_OK | os.X_OK):
        raise UserError(f"--output {path}: nothing can be written to {path.absolute().parent}; choose another")


def _generate(arguments: argparse.Namespace) -> None:
    from .checkpoint import calibrated_plan, load
    from .method.errors import UserError
    from .planning import load_plan
    from .side_by_side import Answers, Request, check_answerable

    if arguments.new_tokens < 1:
        raise UserError(f"--new-tokens {arguments.new_tokens} is not at least 1")
    given = [f"--{name}" for name in PLANNED if getattr(arguments, name) is not None]
    if arguments.plan and given:
        raise UserError(f"--plan {arguments.plan} is made already: leave out {', '.join(given)}, or --plan")
    request = Request(arguments.prompt, arguments.new_tokens, arguments.tokens, arguments.raw)
    plan = load_plan(arguments.plan) if arguments.plan else None
    recipe = None if plan else _recipe(arguments)
    if recipe and recipe.drops_nothing:
        raise UserError(f"--method {recipe.method} drops nothing: both answers would be one; take another")
    model, tokenizer = load(arguments.model, arguments.device, arguments.dtype)
    check_answerable(model, tokenizer, request, recipe.mechanisms() if recipe else ())
    plan = plan or calibrated_plan(model, tokenizer, recipe)
    Answers(model, tokenizer, plan, request).stream(sys.stdout)


def _recipe(arguments: argparse.Namespace) -> Recipe:
    from .checkpoint import Recipe

    given = {name: getattr(arguments, name) for name in PLANNED}
    return Recipe(**{name: value for name, value in given.items() if value is not None})


if __name__ == "__main__":
    main()
