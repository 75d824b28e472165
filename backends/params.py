"""A store's settings as one string: what the toolstack puts into a backend's `params` node and we read back.

blkif.h leaves the form of `params` to the toolstack. Ours is the path alone where the settings say no more
than a path, as `xl` writes it, and a JSON object otherwise.
"""

import json

from pydantic import BaseModel


def params_of(config: BaseModel) -> str:
    """The string that stands for `config`."""
    said = config.model_dump(mode="json", exclude_defaults=True)
    if said.keys() == {"path"} and not str(said["path"]).startswith("{"):
        return str(said["path"])
    return json.dumps(said, separators=(",", ":"))


def config_of(model: type[BaseModel], params: str) -> BaseModel:
    """The settings that `params` stands for.

    Raises:
        pydantic.ValidationError: they do not fit `model`.
    """
    if params.startswith("{"):
        return model.model_validate_json(params)
    return model.model_validate({"path": params} if params else {})
