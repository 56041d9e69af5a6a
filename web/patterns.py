"""Rules for text as OpenAPI can say them: regular expressions that are the same in ECMA-262 and in Python."""

_STEERING = (
    r"\u0000-\u0009\u000b-\u001f\u007f-\u009f\u00ad\u0600-\u0605\u061c\u06dd\u070f\u0890-\u0891\u08e2\u180e"
    r"\u200b\u200e-\u200f\u2028-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb"
)
"""What steers a text instead of standing in it, up to U+FFFF: beyond, ECMA-262 would need a flag."""

PLAIN = f"^[^{_STEERING}]*$"
"""No control characters."""

PLAIN_AND_VISIBLE = rf"^[^{_STEERING}]*[^{_STEERING}\s][^{_STEERING}]*$"
"""No control characters, and not only spaces."""
