"""The base of everything that is data: frozen, validated, no field that is not declared."""

from pydantic import BaseModel, ConfigDict


class Spec(BaseModel):
    """A frozen, validated value. Raises `pydantic.ValidationError` for an unknown field or a value out of range."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


def kind_of(cls: type[BaseModel]) -> str:
    """The word for a spec among those that fill its slot; empty where the slot has one alone."""
    field = cls.model_fields.get("kind")
    return str(field.default) if field else ""
