"""What an operator may do: one table, of every route that is open to operators."""

from models import Role

RIGHTS = {
    # endpoint: the least role that may call it
    "company_payments.list_payments": Role.READ,
    "callbacks.list_callbacks": Role.READ,
    "callbacks.get_callback": Role.READ,
    "callback_endpoint.get_endpoint": Role.READ,
    "reports.daily": Role.READ,
    "reports.metrics_report": Role.READ,
    "callbacks.replay_callback": Role.SUPPORT,
    "callback_endpoint.ping_endpoint": Role.SUPPORT,
    "callback_endpoint.recover": Role.SUPPORT,
    "callback_endpoint.enable_endpoint": Role.SUPPORT,
    "callback_endpoint.rotate_secret": Role.ADMIN,
    "company_packages.assign": Role.ADMIN,
    "packages.create_package": Role.ADMIN,
    "packages.change_package": Role.ADMIN,
}

_RANKS = {role: rank for rank, role in enumerate(Role)}


def may(role: Role, endpoint: str) -> bool:
    """Return whether an operator of a role may call an endpoint; what is not in the table none may."""
    least = RIGHTS.get(endpoint)
    return least is not None and _RANKS[role] >= _RANKS[least]
