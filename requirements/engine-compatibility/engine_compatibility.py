"""Lets a CUDA build of torchvision be imported beside the CPU build of torch.

torchvision attaches fake kernels to `torchvision::nms` and `torchvision::qnms` as it is imported.
Its C++ library would have defined the two operators, but that library needs CUDA and does not load
here, so the import fails with "operator torchvision::nms does not exist". Defining the two schemas
is enough: no model of this course calls the operators.

The `.pth` file imports this module whenever Python starts, so it must stay cheap: torch is
imported only when torchvision is.
"""

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import spec_from_file_location

OPERATORS = ("nms", "qnms")


class SchemaLoader(SourceFileLoader):
    """Loads `torchvision.extension`, then defines the operators that its library did not."""

    def exec_module(self, module):
        super().exec_module(module)
        if module._has_ops():
            return
        import torch

        # torch removes the definitions when the library object is collected: the module keeps it.
        module.schemas = torch.library.Library("torchvision", "DEF")
        for operator in OPERATORS:
            module.schemas.define(
                f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )


class SchemaFinder(MetaPathFinder):
    """Hands `torchvision.extension`, and nothing else, to `SchemaLoader`."""

    def find_spec(self, name, path=None, target=None) -> ModuleSpec | None:
        if name != "torchvision.extension":
            return None
        found = PathFinder.find_spec(name, path, target)
        if found is None or found.origin is None:
            return None
        return spec_from_file_location(name, found.origin, loader=SchemaLoader(name, found.origin))


sys.meta_path.insert(0, SchemaFinder())
