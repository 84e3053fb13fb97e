"""A record is logged once, whenever its cell was finished; and where a W&B server is looked for."""

from __future__ import annotations

import importlib.util
import socket

import pytest
from hydra import compose
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from wisparse.method.errors import UserError
from wisparse.repro.cell.loggers import NoLogger, WandbLogger, log_once, resolved_mode
from wisparse.repro.configuration import composing

RECORD = {"utc": "2026-01-01T00:00:00+00:00", "items_sha256": "a"}


class Logger:
    """A logger that remembers, and fails when told to."""

    def __init__(self, place: str) -> None:
        self.place, self.logged, self.fails = place, [], False

    def check(self) -> None:
        """Nothing to refuse."""

    def log(self, record):
        """Remember the record."""
        if self.fails:
            raise UserError("no server")
        self.logged.append(record)


def test_a_finished_cell_is_logged_later_and_once(tmp_path):
    logger = Logger("wandb one")
    log_once(NoLogger(), tmp_path, RECORD)
    assert not list(tmp_path.iterdir())
    logger.fails = True
    with pytest.raises(UserError):
        log_once(logger, tmp_path, RECORD)
    logger.fails = False
    log_once(logger, tmp_path, RECORD)
    log_once(logger, tmp_path, RECORD)
    assert logger.logged == [RECORD]
    other = Logger("wandb two")
    log_once(other, tmp_path, RECORD)
    log_once(logger, tmp_path, RECORD)
    again = RECORD | {"utc": "2026-02-01T00:00:00+00:00"}
    log_once(logger, tmp_path, again)
    assert (other.logged, logger.logged) == ([RECORD], [RECORD, again])


@pytest.fixture
def alone(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "http_proxy", "https_proxy", "HTTP_PROXY",
                 "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return tmp_path / "netrc"


def test_a_login_of_the_server_in_use_means_online(alone, monkeypatch):
    assert resolved_mode("auto") == "offline"
    alone.write_text("machine wandb.example.org login user password secret\n")
    assert resolved_mode("auto") == "offline"
    monkeypatch.setenv("WANDB_BASE_URL", "http://wandb.example.org:8080")
    assert resolved_mode("auto") == "online"
    monkeypatch.delenv("WANDB_BASE_URL")
    alone.write_text("machine api.wandb.ai login user password secret\n")
    assert resolved_mode("auto") == "online"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert resolved_mode("auto") == "offline"


def test_without_a_login_nobody_is_asked_for_wandb(alone, monkeypatch, tmp_path):
    """Neither an account nor the package is needed; `logger=wandb` asks for both."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with composing():
        configured, asked = (compose("config", overrides=given).logger for given in ([], ["logger=wandb"]))
    logger = instantiate(configured)
    assert logger.place is None
    log_once(logger, tmp_path, RECORD)
    assert not list(tmp_path.iterdir())
    with pytest.raises(InstantiationException, match="needs wandb"):
        instantiate(asked)
    alone.write_text("machine api.wandb.ai login user password secret\n")
    with pytest.raises(InstantiationException, match="needs wandb"):
        instantiate(configured)
    monkeypatch.undo()
    monkeypatch.setenv("NETRC", str(alone))
    assert instantiate(configured).place == "wandb wisparse"


def test_a_server_that_does_not_answer_is_found_before_a_cell_is_computed(alone, monkeypatch, tmp_path):
    pytest.importorskip("wandb", reason="wandb is optional on GPU machines")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and nobody listens
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
        logger = WandbLogger("project", str(tmp_path / "logs"), "online")
        with pytest.raises(UserError, match=r"cannot be reached .*; use logger\.mode=offline"):
            logger.check()
        taken.listen()
        logger.check()
    assert WandbLogger("project", str(tmp_path), "disabled").place is None
