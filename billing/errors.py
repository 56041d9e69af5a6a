"""One family of errors. The docstring's first line is the message; status and slug say it in HTTP (RFC 9457).

Each type, which is a ``slug``, also says at length what it means and what to do: `/problems/<slug>` shows
that. Backticks stand around words of the contract. Every text has its translation (`make messages`).
"""

from typing import ClassVar

from sentences import Sentence


class VadeError(Exception):
    """Something was refused.

    A detail may have values, as ``%(name)s``: ``NotFoundError("No job has the id %(id)s.", id=7)``.
    """

    status: ClassVar[int] = 400
    slug: ClassVar[str] = "refused"
    title: ClassVar[str] = "Refused"
    meaning: ClassVar[str]
    remedy: ClassVar[str]

    def __init__(self, detail: str | None = None, **values: object) -> None:
        text = self.message() if detail is None else detail
        self.detail: str = Sentence(text, **values) if values else text
        super().__init__(self.detail)

    @classmethod
    def message(cls) -> str:
        """Return what is said where no other detail is given."""
        return (cls.__doc__ or "").strip().splitlines()[0]


class InvalidFieldError(VadeError):
    """The request is not valid: see errors."""

    status = 422
    slug = "validation-error"
    title = "Validation error"
    meaning = (
        "Fields of the body, the path or the query were refused. `errors` names each by a JSON pointer "
        "(RFC 6901) and says why. Nothing of the request was stored."
    )
    remedy = "Correct the fields that `errors` names, and send the request again."

    def __init__(self, pointer: str, detail: str, **values: object) -> None:
        super().__init__()
        self.errors = [{"pointer": pointer, "detail": Sentence(detail, **values) if values else detail}]


class CredentialsError(VadeError):
    """The e-mail or the password is wrong."""

    status = 401
    slug = "invalid-credentials"
    title = "Invalid credentials"
    meaning = "No company signs in with this e-mail and this password. Which of the two is wrong is not told."
    remedy = "Check both. Capital and small letters are one in the e-mail, and two in the password."


class TokenError(VadeError):
    """The token is missing, expired or not valid."""

    status = 401
    slug = "invalid-token"
    title = "Invalid token"
    meaning = (
        "The call needs a token, sent as `Authorization: Bearer …`. None came, or one that has expired, was "
        "revoked, or is of the wrong kind (an access token where a refresh token is wanted, or the reverse)."
    )
    remedy = (
        "Send the access token of the latest login. Where it has expired, get another from "
        "`POST /api/v1/token/refresh`, or log in again."
    )


class ForbiddenError(VadeError):
    """The token does not give the right to do that."""

    status = 403
    slug = "forbidden"
    title = "Forbidden"
    meaning = (
        "The token is good, but the call concerns another company, or needs a right that it does not give."
    )
    remedy = "Use the token of the company that the call concerns, or one that has the right."


class NotFoundError(VadeError):
    """There is no such thing."""

    status = 404
    slug = "not-found"
    title = "Not found"
    meaning = "There is nothing at this address, or nothing with this id that the caller may see."
    remedy = "Check the address, in which capital and small letters differ, and the id."


class EmailTakenError(VadeError):
    """A company with this e-mail is registered already."""

    status = 409
    slug = "email-taken"
    title = "E-mail taken"
    meaning = "An e-mail belongs to one company, in whatever case its letters are written."
    remedy = "Log in with this e-mail, or register with another."


class PackageOpenError(VadeError):
    """The company has an open package already."""

    status = 409
    slug = "package-open"
    title = "Package open"
    meaning = "A company has at most one open package. It stays open while a declined payment is tried again."
    remedy = "See what the company has: `GET /api/v1/company-packages/current`."


class CompanyPassiveError(VadeError):
    """The company is passive for non-payment and can take no package."""

    status = 409
    slug = "company-passive"
    title = "Company passive"
    meaning = (
        "A payment for the same period was declined three times. The company can log in and read, and take "
        "no package."
    )
    remedy = "Settle with the platform what is owed. Sending the request again changes nothing."


class EndpointMissingError(VadeError):
    """There is no callback endpoint."""

    status = 404
    slug = "callback-endpoint-missing"
    title = "Callback endpoint missing"
    meaning = "The company, or the platform, has said nowhere where its callbacks are to be sent."
    remedy = (
        "A company sets `callback_url` with `PATCH /api/v1/companies/me`; the platform's endpoint is the "
        "setting `CALLBACK_URL`."
    )


class EndpointDisabledError(VadeError):
    """The callback endpoint is disabled: enable it first, by a ping that it answers with a 2xx."""

    status = 409
    slug = "callback-endpoint-disabled"
    title = "Callback endpoint disabled"
    meaning = "The endpoint answered 410, or failed for five days. Nothing is sent to it any more."
    remedy = (
        "Mend the endpoint, then call `POST /api/v1/callback-endpoint/ping`: a 2xx enables it. "
        "`POST /api/v1/callback-endpoint/recover` sends what was missed."
    )


class TooManySecretsError(VadeError):
    """Too many former secrets still sign: wait until one of them expires."""

    status = 409
    slug = "too-many-secrets"
    title = "Too many secrets"
    meaning = (
        "A secret that was rotated signs on for a while, so that receivers can change over. Few may at once."
    )
    remedy = "Wait until `former_secret_expires_at`, then rotate again."


class JobSettledError(VadeError):
    """The job was settled meanwhile: there is nothing left to decide."""

    status = 409
    slug = "job-settled"
    title = "Job settled"
    meaning = "A parked job waited for a decision, and was settled before one was made."
    remedy = "Release the job, which closes it: `flask billing parked release ID`."


class KeyInvalidError(VadeError):
    """The Idempotency-Key must be 1 to 255 visible characters of ASCII, in quotation marks or bare."""

    status = 400
    slug = "idempotency-key-invalid"
    title = "Idempotency key invalid"
    meaning = "The header `Idempotency-Key` is no text that can be a key."
    remedy = "Send 1 to 255 visible characters of ASCII, best a random UUID, or leave the header out."


class KeyReusedError(InvalidFieldError):
    """The Idempotency-Key was used for another request: this one was not done."""

    status = 422
    slug = "idempotency-key-reused"
    title = "Idempotency key reused"
    meaning = (
        "Within 24 hours a key stands for one request: the same method, address and body, of the same caller."
    )
    remedy = "Take a fresh key for each new request, and the same one only to send a request again."


class KeyBusyError(VadeError):
    """A request with this Idempotency-Key is under way: try again in a moment."""

    status = 409
    slug = "idempotency-key-busy"
    title = "Idempotency key busy"
    meaning = "The request was sent before under this key, and has not been answered for half a minute."
    remedy = "Send it again, under the same key, after as many seconds as `Retry-After` says."
    retry_after_s: ClassVar[int] = 1


class PreconditionFailedError(VadeError):
    """It has changed since the version that the request names: nothing was done."""

    status = 412
    slug = "precondition-failed"
    title = "Precondition failed"
    meaning = (
        "`If-Match` names another version than the one that stands (RFC 9110 §13.1.1): someone else changed "
        "it meanwhile."
    )
    remedy = "Get it again, look whether the change is still right, and send it with the new `ETag`."


class SecretGoneError(VadeError):
    """The secret that was answered first is gone: it was rotated away since."""

    status = 409
    slug = "secret-gone"
    title = "Secret gone"
    meaning = "The request was done, and its answer showed a secret that is not kept any more."
    remedy = "Rotate the secret again, under a fresh key."


class OperatorError(VadeError):
    """The operator cannot have that."""

    status = 409
    slug = "operator-refused"
    title = "Operator refused"
    meaning = "An operator cannot be made, or given a token, as it was asked."
    remedy = "Look at the operators there are: `flask operator list`."


class RateLimitError(VadeError):
    """Too many requests: try again later."""

    status = 429
    slug = "too-many-requests"
    title = "Too many requests"
    meaning = "More requests came within a minute than the call allows."
    remedy = "Wait for as many seconds as `Retry-After` says, then send more slowly."

    def __init__(self, retry_after_s: int) -> None:
        super().__init__()
        self.retry_after_s = retry_after_s
