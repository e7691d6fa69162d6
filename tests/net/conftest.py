import pytest

pytest.register_assert_rewrite("tests.net.conformance", "tests.net.tls_world")
