"""The methods by name, and how a configuration becomes one.  A paper is a file; the files do not know each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from raytrain.config import SECTIONS, Config, nearest, validate
from raytrain.data.manifest import Manifest
from raytrain.methods.base import Method
from raytrain.methods.compositional import Compositional
from raytrain.methods.dscmr import Dscmr
from raytrain.methods.hsc_mae import HscMae
from raytrain.methods.ili import Ili
from raytrain.methods.metric import Metric
from raytrain.methods.psd import Psd
from raytrain.models.towers import ViewInput

METHODS: dict[str, type[Method]] = {
    "metric": Metric,
    "hsc-mae": HscMae,
    "compositional": Compositional,
    "psd": Psd,
    "dscmr": Dscmr,
    "ili": Ili,
}


def settings_of(config: Config) -> Any:
    """The checked settings of the configuration's method.  Raises ValueError for an unknown method or key."""
    values = dict(config.method)
    name = values.pop("name", "metric")
    if name not in METHODS:
        raise ValueError(
            f"method.name {name!r} is unknown; known: {', '.join(METHODS)}.{nearest(str(name), list(METHODS))}"
        )
    return validate(METHODS[name].Settings, values, "method")


def resolve(config: Config, manifest: Manifest) -> Config:
    """The configuration with every default of the method filled in, checked against the data set.

    Raises ValueError for views that the data set does not have, labels that it lacks, and unknown keys.
    """
    for view in config.data.views:
        if view not in manifest.views:
            raise ValueError(
                f"data.views: {view!r} is not a view of {manifest.name}; it has: {', '.join(manifest.views)}"
            )
    name = config.method.get("name", "metric")
    settings = settings_of(config)
    config = _with_defaults(config, METHODS[name].defaults)
    views, (fewest, most) = config.data.views, METHODS[name].num_views
    if len(set(views)) != len(views) or len(views) < fewest or (most is not None and len(views) > most):
        allowed = f"{fewest}" if most == fewest else f"{fewest} or more"
        raise ValueError(f"data.views = {list(views)}; {name} takes {allowed} different views")
    annotation = config.data.annotation
    if annotation == "auto":
        annotation = "label" if manifest.has_labels else "events" if manifest.has_events else "none"
    has = {"label": manifest.has_labels, "events": manifest.has_events, "none": True}
    if not has[annotation]:
        raise ValueError(
            f"data.annotation = {annotation!r}, but {manifest.name} has label kind {manifest.label_kind!r}"
        )
    METHODS[name].check(settings, annotation)
    return config.model_copy(
        update={
            "method": {"name": name, **settings.model_dump()},
            "data": config.data.model_copy(update={"annotation": annotation}),
        }
    )


def _with_defaults(config: Config, defaults: Mapping[str, Mapping[str, Any]]) -> Config:
    """The method's own defaults for the keys that nobody has set."""
    update = {}
    for name, values in defaults.items():
        section = getattr(config, name)
        open_keys = {key: value for key, value in values.items() if key not in section.model_fields_set}
        given = section.model_dump(include=section.model_fields_set)
        update[name] = validate(SECTIONS[name], {**given, **open_keys}, name)
    return config.model_copy(update=update)


def build(config: Config, manifest: Manifest) -> Method:
    """The method of a resolved configuration, its weights drawn from torch's generator."""
    views = {}
    for name in config.data.views:
        scaler = manifest.views[name].scaler
        views[name] = ViewInput(torch.tensor(scaler.center), torch.tensor(scaler.scale))
    num_classes = None if config.data.annotation == "none" else manifest.num_classes
    return METHODS[config.method["name"]].build(settings_of(config), views, config.model, num_classes)
