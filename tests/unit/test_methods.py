import pytest

from post_training import methods


@pytest.mark.parametrize("name", methods.names())
def test_every_method_names_its_rows_and_its_configuration(name):
    module = methods.load(name)
    assert module.ROWS in ("messages", "preference")
    assert module.Config().init_from
    assert module.config_class().__name__.endswith("Config")
