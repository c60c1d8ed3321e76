"""Replaced names come back, in order and once; hosts of the wrong version or shape are refused at entry."""

from __future__ import annotations

import importlib.metadata
import types

import pytest

from univg_fast.integrations.patching import Patch, all_or_nothing
from univg_fast.integrations.versions import require, require_signature


class Host:
    def loss(self, logp: float, ratio: float = 1.0) -> float:
        return logp * ratio

    @staticmethod
    def weight(x: float) -> float:
        return 2 * x


class Stubborn(Host):
    def __delattr__(self, name: str) -> None:
        if name == "loss":
            raise AttributeError(name)
        super().__delattr__(name)


def test_a_patch_holds_until_it_is_restored() -> None:
    host = Host()
    patch = Patch()
    patch.replace(Host, "loss", lambda self, logp: -1.0)
    patch.replace(Host, "weight", staticmethod(lambda x: 0.0))
    assert host.loss(3.0) == -1.0 and host.weight(1.0) == 0.0
    patch.restore()
    assert host.loss(3.0) == 3.0 and host.weight(1.0) == 2.0
    assert isinstance(vars(Host)["weight"], staticmethod)
    assert not any(name.startswith("_univg") for name in (*vars(Host), *vars(host)))


def test_what_was_not_there_is_gone_afterwards_also_after_an_error() -> None:
    host = Host()
    with pytest.raises(RuntimeError), Patch() as patch:  # noqa: PT012
        patch.replace(host, "loss", lambda logp: 7.0)
        assert host.loss(1.0) == 7.0
        raise RuntimeError
    assert vars(host) == {} and host.loss(1.0) == 1.0


def test_one_name_that_cannot_be_put_back_does_not_keep_the_others() -> None:
    """All others are put back, the error comes out, and a later patch may come."""
    host, patch = Stubborn(), Patch()
    patch.replace(Host, "weight", staticmethod(lambda x: 0.0))
    patch.replace(host, "loss", lambda logp: 2.0)
    patch.replace(Host, "loss", lambda self, logp: 1.0)
    with pytest.raises(AttributeError, match="loss"):
        patch.restore()
    assert Host().loss(3.0) == 3.0 and host.weight(1.0) == 2.0 and set(vars(host)) == {"loss"}
    with Patch() as second:
        second.replace(Host, "weight", staticmethod(lambda x: 5.0))
        second.replace(Host, "loss", lambda self, logp: 6.0)


def test_what_the_host_has_deleted_is_gone_as_before() -> None:
    host, patch = Host(), Patch()
    patch.replace(host, "loss", lambda logp: 2.0)
    del host.loss
    patch.restore()
    assert host.loss(3.0) == 3.0 and vars(host) == {}


def test_a_drop_in_that_is_interrupted_leaves_nothing() -> None:
    with pytest.raises(KeyboardInterrupt), all_or_nothing() as done:  # noqa: PT012
        done.replace(Host, "loss", lambda self, logp: 1.0)
        raise KeyboardInterrupt
    assert Host().loss(3.0) == 3.0
    with all_or_nothing() as done:
        done.replace(Host, "loss", lambda self, logp: 1.0)
    assert Host().loss(3.0) == 1.0
    done.restore()


def test_restoring_twice_does_not_undo_a_later_patch() -> None:
    first, second = Patch(), Patch()
    first.replace(Host, "loss", "first")
    first.restore()
    second.replace(Host, "loss", "second")
    first.restore()
    assert Host.loss == "second"
    second.restore()


def test_a_second_patch_of_the_same_name_is_refused_and_changes_nothing() -> None:
    with Patch() as first, Patch() as second:
        first.replace(Host, "loss", "first")
        second.replace(Host, "weight", "second")  # another name: no quarrel
        with pytest.raises(ValueError, match=r"Host\.loss is patched already.*restore\(\) the first"):
            second.replace(Host, "loss", "second")
        assert Host.loss == "first"
    assert callable(Host.loss) and callable(Host.weight)


def test_an_object_may_be_patched_while_its_class_is() -> None:
    host = Host()
    with Patch() as patch:
        patch.replace(Host, "loss", lambda self, logp: 1.0)
        patch.replace(host, "loss", lambda logp: 2.0)
        assert host.loss(0.0) == 2.0
    assert host.loss(5.0) == 5.0


def test_modules_are_named_in_the_error() -> None:
    module = types.ModuleType("host.losses")
    with Patch() as patch:
        patch.replace(module, "table", {})
        with pytest.raises(ValueError, match=r"^host\.losses\.table is patched already"):
            Patch().replace(module, "table", {})
    assert not hasattr(module, "table")


def test_the_installed_version_is_one_of_those_tested() -> None:
    version = importlib.metadata.version("pytest")
    release = ".".join(version.split(".")[:2])
    assert require("pytest", ("0.1", release)) == version
    with pytest.raises(
        ValueError, match=rf'pytest {version} is installed.*tested with 0\.1; pip install "pytest==0\.1'
    ):
        require("pytest", ("0.1",))
    with pytest.raises(ValueError, match="tested with 0.1, 0.2, 0.3, 0.4; pip"):
        require("pytest", ("0.1", "0.2", "0.3", "0.4"))


def test_a_prefix_is_of_whole_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "1.16.2")
    assert require("host", ("1.16",)) == "1.16.2"
    with pytest.raises(ValueError, match="host 1.16.2 is installed"):
        require("host", ("1.1",))


def test_a_host_that_is_not_installed_is_named() -> None:
    with pytest.raises(ValueError, match=r"no-such-host is not installed, expected 0\.9; pip install"):
        require("no-such-host", ("0.9",))


def test_a_missing_parameter_is_named_with_the_place_of_the_function() -> None:
    require_signature(Host.loss, ("logp", "ratio"))
    with pytest.raises(
        ValueError, match=r"Host\.loss \(.*test_patching\.py:\d+\) has no parameter beta; it has self, "
    ):
        require_signature(Host.loss, ("logp", "beta"))
