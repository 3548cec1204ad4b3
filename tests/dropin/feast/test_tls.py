"""The real Feast SDK and CLI with TLS, configured as docs/clients-feast.md says."""

from __future__ import annotations

from pathlib import Path

import pytest

from chassis import server
from chassis.settings import Settings
from services.registry.process import open_service
from services.registry.settings import RegistrySettings
from tests.certificates import make
from tests.conftest import Servers
from tests.dropin.feast.conftest import CONFIGURATION, SDK, Sdk

pytestmark = pytest.mark.dropin


async def test_with_tls(sdk: Sdk, settings: Settings, servers: Servers, tmp_path: Path) -> None:
    made = make(tmp_path)
    shown = {"tls_certificate": str(made.certificate), "tls_key": str(made.key)}
    tls = settings.model_copy(update=shown)
    async with open_service(tls, RegistrySettings()) as services, server.listening(services, tls, 0) as port:

        def write(trust: str) -> None:
            text = CONFIGURATION.format(project="rides", path=f"localhost:{port}", trust=trust, token=servers.admin_key)
            (tmp_path / "feature_store.yaml").write_text(text)

        write(f"cert: {made.certificate}")
        seen = await sdk.client(tmp_path, "apply_and_read")
        assert (seen["entities"], seen["services"]) == (["driver"], ["everything", "model"])
        write("is_tls: true")
        listed = await sdk.run(SDK / "feast", "entities", "list", cwd=tmp_path, SSL_CERT_FILE=str(made.certificate))
        assert "driver" in listed
