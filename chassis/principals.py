"""Who a caller is, and what it may do."""

from __future__ import annotations

from dataclasses import dataclass, field

from chassis import errors


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated caller. Lists mean what `triglot.identity.v1.Principal` says they mean."""

    name: str
    administrator: bool = False
    roles: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()
    feature_stores: frozenset[str] = frozenset()
    actions: tuple[str, ...] = ()
    namespaces: frozenset[str] = frozenset()  # of Kubernetes
    issuer: str = ""  # who vouches for it; empty: Triglot, whose keys' names are unique
    subject: str = ""  # what the issuer calls it, and nobody else ever; empty: its name
    api_key: str = field(default="", compare=False)  # what the key that it shows begins with, and is listed as

    @property
    def identity(self) -> str:
        """Who it is beyond doubt. What is kept for a caller is kept by this: its name may be that of others too.

        Names of Triglot's own hold no line break, so none of them is the identity of a caller of another issuer.
        """
        return f"{self.issuer}\n{self.subject or self.name}" if self.issuer else self.name

    def may(self, action: str) -> bool:
        """Whether it may perform `action`. A listed action that ends in `*` covers what begins like it."""
        return self.administrator or any(
            action.startswith(listed[:-1]) if listed.endswith("*") else action == listed for listed in self.actions
        )

    def may_use(self, feature_store: str) -> bool:
        """Whether it may use a feature store, named in lower case."""
        return self.administrator or feature_store in self.feature_stores or "*" in self.feature_stores

    def require(self, action: str) -> None:
        """Raises PermissionDenied, reason ACTION_NOT_ALLOWED, unless it may perform `action`."""
        if not self.may(action):
            raise errors.PermissionDenied(
                f"{self.name} may not perform {action}", reason="ACTION_NOT_ALLOWED", action=action
            )

    def require_store(self, feature_store: str) -> None:
        """Raises PermissionDenied, reason FEATURE_STORE_NOT_SHARED, unless it may use the feature store."""
        if not self.may_use(feature_store):
            raise errors.PermissionDenied(
                f"{self.name} may not use feature store {feature_store}",
                reason="FEATURE_STORE_NOT_SHARED",
                feature_store=feature_store,
            )


# Stands for every caller when authentication is switched off, which works on loopback only.
ANYBODY = Principal(name="anybody", administrator=True)
