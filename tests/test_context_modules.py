"""The table of context modules."""

import subprocess
import sys
import typing

from keras_aspp import layers
from keras_aspp.config.schema import ModelConfig
from keras_aspp.context_modules import MODULES, ContextName, modules_text
from keras_aspp.models import DeepLabV3, DeepLabV3Plus


def test_the_type_lists_the_names_of_the_table():
    assert typing.get_args(ContextName) == tuple(MODULES)


def test_every_layer_is_public():
    named = {module.layer for module in MODULES.values()} - {None}
    assert named <= set(layers.__all__)


def test_help_texts_are_those_of_the_table():
    texts = [
        " ".join(owner.__doc__.split())
        for owner in (ModelConfig, DeepLabV3, DeepLabV3Plus)
    ]
    for name, module in MODULES.items():
        assert f"`{name}`, {module.text}" in texts[0]
        for text in texts[1:]:
            assert f'`"{name}"`, {module.text}' in text
    assert "{context_modules}" not in "".join(texts)
    assert modules_text().startswith("`aspp`, convolutions of several rates")


def test_the_table_loads_no_keras():
    code = (
        "import sys\n"
        "sys.argv = ['keras-aspp']\n"
        "import keras_aspp.context_modules\n"
        "assert 'keras' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)
