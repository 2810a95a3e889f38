"""What botocore is given to read about services: quicker, and the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from botocore.exceptions import BotoCoreError
from botocore.loaders import create_loader
from botocore.session import Session

from b2s.adapters import s3_client


@pytest.mark.parametrize("name", ["endpoints", "partitions", "sdk-default-configuration", "_retry"])
def test_general_data_is_the_same(name: str) -> None:
    """Plain dicts in the place of ordered ones are equal, and in the same order."""
    ours, theirs = s3_client._service_data.__wrapped__().load_data(name), create_loader().load_data(name)
    assert ours == theirs
    assert list(ours) == list(theirs)


@pytest.mark.parametrize("service", ["s3", "sts", "sso", "sso-oidc"])
@pytest.mark.parametrize("kind", ["service-2", "endpoint-rule-set-1"])
def test_services_are_the_same(service: str, kind: str) -> None:
    """S3 itself, and those that botocore asks for credentials."""
    ours = s3_client._service_data.__wrapped__().load_service_model(service, kind)
    assert ours == create_loader().load_service_model(service, kind)


def test_every_service_is_listed() -> None:
    """All that botocore finds by looking into every directory."""
    assert set(create_loader().list_available_services("service-2")) <= set(
        s3_client._service_data.__wrapped__().list_available_services("service-2")
    )


def test_unknown_service_is_botocores_own_error() -> None:
    """Translated like any other of its errors."""
    session = Session()
    session.register_component("data_loader", s3_client._service_data.__wrapped__())
    with pytest.raises(BotoCoreError):
        session.create_client("no-such-service", region_name="us-east-1")


def test_aws_data_path_is_looked_into_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with botocore's own loader."""
    (tmp_path / "partitions.json").write_text('{"made": "up"}')
    monkeypatch.setenv("AWS_DATA_PATH", str(tmp_path))
    assert s3_client._service_data.__wrapped__().load_data("partitions") == {"made": "up"}
