import re

import pytest
from wisparse.repro.report.readme import README, filled

from ..conftest import METHODS, ROOT


def test_the_readme_is_as_its_sources_say():
    text = README.read_text(encoding="utf-8")
    assert filled(text) == text, "run `make readme`"


def test_the_catalogue_lists_every_method():
    assert set(re.findall(r"^\| `(\w+)` \|", README.read_text(encoding="utf-8"), re.MULTILINE)) == set(METHODS)


def test_a_lost_marker_is_noticed():
    with pytest.raises(ValueError, match="findings"):
        filled("no markers")


def test_every_link_inside_the_repository_exists():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README.read_text(encoding="utf-8")):
        assert (ROOT / target).exists(), target
