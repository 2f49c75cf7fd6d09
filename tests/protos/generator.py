"""`protos/generate.py` as a module."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]


def load() -> ModuleType:
    """The generator, loaded once."""
    name = "forebay_protos_generate"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / "protos" / "generate.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]
