"""Data sets of a mirror are read as they are, not as they were in an earlier cell of a sweep."""

import datasets
from wisparse.repro.text.data_sets import DataSource, load_split


def test_a_mirrors_file_that_changes_between_two_cells_is_read_again(tmp_path):
    source = DataSource("org/name", None, "name")
    file = tmp_path / "name" / "test.parquet"
    file.parent.mkdir()
    for text in ("first", "other"):  # as many bytes
        datasets.Dataset.from_dict({"text": [text]}).to_parquet(file)
        assert load_split(source, "test", str(tmp_path))["text"][0] == text
    assert load_split(source, "test", str(tmp_path)) is load_split(source, "test", str(tmp_path))
