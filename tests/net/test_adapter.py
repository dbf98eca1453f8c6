"""The adapter's own promises."""

from __future__ import annotations

import pytest

from p2pdfl.net import adapter


def test_another_version_of_the_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "LIBP2P_VERSION", "0.8.2")
    with pytest.raises(adapter.UnsupportedLibp2p, match="is installed"):
        adapter.check_version()


def test_the_installed_version_is_the_one_the_repairs_are_for() -> None:
    adapter.check_version()
