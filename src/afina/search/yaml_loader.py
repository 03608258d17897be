"""A YAML loader that reads numbers as people write them, and refuses a name that stands twice."""

import re
from typing import Any

import yaml


class NumberLoader(yaml.SafeLoader):
    """YAML that reads `1e-4` as the number it is (YAML 1.1 takes it for text without a point), and no name twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """A mapping; `yaml.YAMLError` where a name is in it twice: the first value would be lost."""
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = [key for key, _ in node.value if names.count(key.value) > 1]
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"{twice[-1].value} is there twice", twice[-1].start_mark
            )
        return super().construct_mapping(node, deep)


NumberLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)
