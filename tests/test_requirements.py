"""A test that lacks a package is skipped at home and fails in CI."""

import pytest

from tests.requirements import needs_package


def test_a_package_that_is_there_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    needs_package("libxen-dev", True)


@pytest.mark.parametrize("value", ["", "false"])
def test_a_missing_package_skips(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("CI", value)
    with pytest.raises(pytest.skip.Exception, match="libxen-dev"):
        needs_package("libxen-dev", False)


def test_a_missing_package_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="libxen-dev"):
        needs_package("libxen-dev", False)
