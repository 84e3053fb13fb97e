"""Fetch models and data once, for offline use: `make prefetch PROFILE=paper|real`, `make fetch-smollm2`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from hydra import compose
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from ..method.errors import UserError
from .configuration import composing, mistakes_in_one_line
from .evaluation.harness_tasks import harness_tasks
from .models.architecture import PAPER_MODELS
from .models.checkpoint import find_checkpoint
from .models.hub import fetch_model
from .text.data_sets import DataSource, load_split


@dataclass(frozen=True)
class Profile:
    """Choices of the configuration groups whose models and data a profile needs."""

    models: tuple[str, ...]
    suites: tuple[str, ...]
    calibrations: tuple[str, ...]


PROFILES = {
    "paper": Profile(
        models=PAPER_MODELS,
        suites=("paper", "wina", "wikitext", "zeroshot"),
        calibrations=("paper", "alpaca", "c4", "wikitext"),
    ),
    "real": Profile(models=("smollm2-135m",), suites=("wikitext", "zeroshot"), calibrations=()),
    "smollm2": Profile(models=("smollm2-135m",), suites=(), calibrations=()),
}

Fetch = Callable[[], object]


def steps(profile: Profile) -> Iterator[tuple[str, Fetch]]:
    """Steps of fetching, each once: a name for the report and what fetches it."""
    for choice in profile.models:
        model = _configuration(f"model={choice}").model
        if model.source == "hub":
            yield f"model {model.id}", lambda model=model: fetch_model(model.id, model.revision)
        else:
            settings = OmegaConf.to_container(model, resolve=True)
            yield f"model {choice}", lambda settings=settings: find_checkpoint(settings)
    data: dict[tuple[DataSource, str], None] = {}
    for choice in profile.suites:
        data |= dict.fromkeys(_suite_data(_configuration(f"suite={choice}").suite))
    for choice in profile.calibrations:
        mix = instantiate(_configuration(f"calibration={choice}").calibration)
        data |= {(source.data, source.split): None for source in mix.sources.values()}
    for source, split in data:
        name = " ".join(part for part in ("data", source.hub, source.config, split) if part)
        yield name, lambda source=source, split=split: load_split(source, split, None)


def _suite_data(config: DictConfig) -> list[tuple[DataSource, str]]:
    suite = instantiate(config)
    if hasattr(suite, "source"):
        return [(suite.source, suite.split)]
    # Code that is executed only on request is fetched in any case.
    tasks = [harness_tasks()[name] for name in suite.tasks]
    return [(task.source, split) for task in tasks for split in task.splits(suite.shots[task.name])]


def _configuration(override: str) -> DictConfig:
    return compose("config", overrides=[override])


def prefetch(profile: str) -> int:
    """Fetch all of a profile, one line each on stdout; returns the number of what could not be had."""
    if profile not in PROFILES:
        raise UserError(
            f"there is nothing to fetch for PROFILE={profile}: its models and tasks are in the repository; "
            f"choose {', '.join(PROFILES)}"
        )
    failed = 0
    for name, fetch in steps(PROFILES[profile]):
        try:
            fetch()
            print(f"{name}: here", flush=True)
        except UserError as error:
            failed += 1
            print(f"error: {name}: {error}", file=sys.stderr, flush=True)
    return failed


@mistakes_in_one_line()
def main() -> None:
    """Command line: the name of a profile. Exits with 2 when something could not be fetched."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("profile")
    arguments = parser.parse_args()
    with composing():
        failed = prefetch(arguments.profile)
    if failed:
        raise UserError(f"{failed} could not be fetched; the same command goes on from here")
    print("all here: HF_HUB_OFFLINE=1 keeps everything from asking the hub again")


if __name__ == "__main__":
    main()
