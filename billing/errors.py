"""One family of errors. The docstring is the message; status and slug say it in HTTP (RFC 9457)."""

from typing import ClassVar


class VadeError(Exception):
    """Something was refused."""

    status: ClassVar[int] = 400
    slug: ClassVar[str] = "refused"
    title: ClassVar[str] = "Refused"

    def __init__(self, detail: str | None = None) -> None:
        self.detail = detail or (type(self).__doc__ or "").strip().splitlines()[0]
        super().__init__(self.detail)


class InvalidFieldError(VadeError):
    """A field's value cannot be taken."""

    status = 422
    slug = "validation-error"
    title = "Validation error"

    def __init__(self, pointer: str, detail: str) -> None:
        super().__init__("The request is not valid: see errors.")
        self.errors = [{"pointer": pointer, "detail": detail}]


class CredentialsError(VadeError):
    """The e-mail or the password is wrong."""

    status = 401
    slug = "invalid-credentials"
    title = "Invalid credentials"


class TokenError(VadeError):
    """The token is missing, expired or not valid."""

    status = 401
    slug = "invalid-token"
    title = "Invalid token"


class ForbiddenError(VadeError):
    """The token does not give the right to do that."""

    status = 403
    slug = "forbidden"
    title = "Forbidden"


class NotFoundError(VadeError):
    """There is no such thing."""

    status = 404
    slug = "not-found"
    title = "Not found"


class EmailTakenError(VadeError):
    """A company with this e-mail is registered already."""

    status = 409
    slug = "email-taken"
    title = "E-mail taken"


class PackageOpenError(VadeError):
    """The company has an open package already."""

    status = 409
    slug = "package-open"
    title = "Package open"


class CompanyPassiveError(VadeError):
    """The company is passive for non-payment and can take no package."""

    status = 409
    slug = "company-passive"
    title = "Company passive"


class EndpointMissingError(VadeError):
    """There is no callback endpoint."""

    status = 404
    slug = "callback-endpoint-missing"
    title = "Callback endpoint missing"


class EndpointDisabledError(VadeError):
    """The callback endpoint is disabled: enable it first, by a ping that it answers with a 2xx."""

    status = 409
    slug = "callback-endpoint-disabled"
    title = "Callback endpoint disabled"


class TooManySecretsError(VadeError):
    """Too many former secrets still sign: wait until one of them expires."""

    status = 409
    slug = "too-many-secrets"
    title = "Too many secrets"


class JobSettledError(VadeError):
    """The job was settled meanwhile: there is nothing left to decide."""

    status = 409
    slug = "job-settled"
    title = "Job settled"


class KeyInvalidError(VadeError):
    """The Idempotency-Key must be 1 to 255 visible characters of ASCII, in quotation marks or bare."""

    status = 400
    slug = "idempotency-key-invalid"
    title = "Idempotency key invalid"


class KeyReusedError(InvalidFieldError):
    """The Idempotency-Key was used for another request: this one was not done."""

    slug = "idempotency-key-reused"
    title = "Idempotency key reused"

    def __init__(self) -> None:
        super().__init__("#", "This is not the request that the key was first used for.")
        self.detail = (type(self).__doc__ or "").strip()


class KeyBusyError(VadeError):
    """A request with this Idempotency-Key is under way: try again in a moment."""

    status = 409
    slug = "idempotency-key-busy"
    title = "Idempotency key busy"
    retry_after_s: ClassVar[int] = 1


class SecretGoneError(VadeError):
    """The secret that was answered first is gone: it was rotated away since."""

    status = 409
    slug = "secret-gone"
    title = "Secret gone"


class RateLimitError(VadeError):
    """Too many requests: try again later."""

    status = 429
    slug = "too-many-requests"
    title = "Too many requests"

    def __init__(self, retry_after_s: int) -> None:
        super().__init__()
        self.retry_after_s = retry_after_s
