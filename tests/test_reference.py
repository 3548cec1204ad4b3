"""docs/configuration.md lists every setting of every process."""

from __future__ import annotations

from triglot.reference import MODELS, PAGE


def test_every_setting_is_documented() -> None:
    page = PAGE.read_text()
    variables = [
        f"{model.model_config.get('env_prefix', '')}{name.upper()}"
        for _, model in MODELS
        for name in model.model_fields
    ]
    assert len(variables) > 40
    assert not [variable for variable in variables if f"`{variable}`" not in page]


def test_every_setting_says_what_it_means() -> None:
    silent = [name for _, model in MODELS for name, field in model.model_fields.items() if not field.description]
    assert not silent
