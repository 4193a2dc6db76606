"""A config in memory becomes a config.json that says the same."""

from dataclasses import replace
from pathlib import Path

import pytest

from model.config.config_json import to_config_json
from model.config.mpt_config import MptConfig
from model.config.strict_reader import ConfigError

GOLDEN = Path(__file__).parents[1] / "golden"


def readable() -> list[tuple[str, MptConfig]]:
    found = []
    for file in sorted(GOLDEN.glob("*/config.json")):
        try:
            found.append((file.parent.name, MptConfig.from_file(file)))
        except ConfigError:  # of cases that are refused
            continue
    return found


def test_every_golden_config_reads_back() -> None:
    configs = readable()
    assert len(configs) > 60
    different = [name for name, config in configs if MptConfig.from_dict(to_config_json(config)) != config]
    assert different == []


def test_a_config_that_no_file_describes_is_refused() -> None:
    config = readable()[0][1]
    with pytest.raises(ConfigError, match=r"make one with MptConfig\.from_dict"):
        to_config_json(replace(config, alibi=True, learned_positions=True))
