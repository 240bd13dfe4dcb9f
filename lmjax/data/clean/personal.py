"""Personal data in texts: found by form and checksum, replaced by <KIND>."""

import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

_DIGIT = re.compile(r"\d")
_CARD_LENGTHS = range(13, 20)
# The first digits that issuers of cards have: Visa, Mastercard, American Express,
# Discover, Diners, JCB, UnionPay, Maestro.
_ISSUERS = re.compile(
    "4|5[1-5]|2(?:22[1-9]|2[3-9]|[3-6]|7[01]|720)|3[47]|6011|64[4-9]|65|3(?:0[0-5]|095"
    "|[689])|35(?:2[89]|[3-8])|62|50|5[6-9]|6[37]"
)
_DATES = re.compile(
    r"\d{1,2}([./-])\d{1,2}\1(?:19|20)?\d\d\b|(?:19|20)\d\d([./-])\d{1,2}\2\d{1,2}\b"
)
_DECIMAL = re.compile(r"\+\d+\.\d+")
# ISO 13616: the characters of an account number by its country.
_IBAN_LENGTHS = {
    country: length
    for length, countries in {
        15: "NO",
        16: "BE",
        18: "DK FO FI GL NL SD",
        19: "MK SI",
        20: "AT BA EE KZ LT LU MN XK",
        21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA",
        23: "AE GI IL IQ OM SO TL",
        24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST",
        26: "IS TR",
        27: "BI DJ FR GR IT MC MR SM",
        28: "AL AZ BY CY DO GT HU LB NI PL SV",
        29: "BR EG PS QA UA",
        30: "JO KW MU",
        31: "MT SC",
        32: "LC",
        33: "RU",
    }.items()
    for country in countries.split()
}


def is_card(text: str) -> bool:
    """Return whether digits are those of a payment card: issuer, length, checksum."""
    digits = [int(character) for character in text if character.isdigit()]
    number = "".join(map(str, digits))
    if len(digits) not in _CARD_LENGTHS or not _ISSUERS.match(number):
        return False
    return len({*digits}) > 1 and passes_luhn(digits)


def passes_luhn(digits: Sequence[int]) -> bool:
    """Return whether the last digit is the checksum of the others (ISO/IEC 7812)."""
    doubled = (sum(divmod(2 * digit, 10)) for digit in digits[-2::-2])
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def is_iban(text: str) -> bool:
    """Return whether a text is an account number, by its length and checksum."""
    account = "".join(text.split()).upper()
    wrong_length = len(account) != _IBAN_LENGTHS.get(account[:2])
    if wrong_length or not 2 <= int(account[2:4]) <= 98:
        return False
    moved = account[4:] + account[:4]
    return int("".join(str(int(character, 36)) for character in moved)) % 97 == 1


def is_address(text: str) -> bool:
    """Return whether a text is an IP address of the public internet."""
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


def is_phone(text: str) -> bool:
    """Return whether digits are as many as a phone number has, and no date."""
    digits = re.sub(r"\D", "", text)
    if _DATES.search(text) or _DECIMAL.fullmatch(text) or len({*digits}) < 3:
        return False
    if text.startswith("+"):
        return 8 <= len(digits) <= 15
    return 9 <= len(digits) <= 11 or (text.startswith("00") and 11 <= len(digits) <= 16)


class Kind(NamedTuple):
    """What may be personal data, and a test of it."""

    pattern: re.Pattern[str]
    mark: str  # a text without it has none; "": a digit
    test: Callable[[str], bool]
    text: str


# ITU-T E.164: the codes of countries.
_COUNTRIES = (
    r"1|7|2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]|2[1-69]\d|3[578]\d"
    r"|42[013]|5[09]\d|6[78]\d|69[0-2]|80[08]|85[02356]|8[78]\d|9[679]\d"
)
_BEFORE, _AFTER = r"(?<![\w@.+/-])", r"(?![\w@]|[.-]\w)"
KINDS: Mapping[str, Kind] = {
    "email": Kind(
        re.compile(
            r"(?<![\w.+%-])[\w.+%-]{1,64}@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}"
            r"[^\W\d_]{2,24}(?![\w@])"
        ),
        "@",
        lambda text: ".." not in text and not text.startswith("."),
        "mail addresses",
    ),
    "iban": Kind(
        re.compile(
            rf"{_BEFORE}[A-Z]{{2}}\d\d ?(?:[A-Z0-9]{{4}} ?){{2,7}}[A-Z0-9]{{1,4}}(?!\w)"
        ),
        "",
        is_iban,
        "account numbers: length of the country, checksum modulo 97",
    ),
    "card": Kind(
        re.compile(
            rf"{_BEFORE}(?:\d{{13,19}}|\d{{4}}([ -])\d{{4}}\1\d{{4}}\1\d{{1,7}}"
            rf"|3\d{{3}}([ -])\d{{6}}\2\d{{4,5}}){_AFTER}"
        ),
        "",
        is_card,
        "payment cards: issuer, length, Luhn's checksum",
    ),
    "ip": Kind(
        re.compile(
            rf"{_BEFORE}(?:\d{{1,3}}(?:\.\d{{1,3}}){{3}}(?![\w@]|\.\d)"
            r"|(?<![:])(?:[0-9a-fA-F]{1,4}:){2,7}(?::?[0-9a-fA-F]{1,4}){1,7}(?![\w:]))"
        ),
        "",
        is_address,
        "IP addresses of the public internet",
    ),
    "phone": Kind(
        re.compile(
            # +49 30 1234567, +1 (212) 555-0100; 0049 30 ...
            rf"{_BEFORE}(?<!\d[ -])(?:(?:\+|00)(?:{_COUNTRIES})(?:[ .-]?\(\d{{1,4}}\))?"
            r"[ ./-]?\d{1,14}(?:[ ./-]\d{1,8}){0,5}"
            # (212) 555-0100, 212-555-0100
            r"|(?:\([2-9]\d\d\) ?|[2-9]\d\d([.-]))[2-9]\d\d[.-]\d{4}"
            # 030 1234567, (020) 7946 0958, 01 23 45 67 89
            r"|(?:\(0\d{1,4}\)|0[1-9]\d{0,4})[ /-]\d{2,8}(?:[ -]\d{2,8}){0,4})"
            rf"{_AFTER}"
        ),
        "",
        is_phone,
        "phone numbers with a country, or with an area and separators",
    ),
}


class Found(NamedTuple):
    """Personal data in a text."""

    kind: str
    example: str  # the text around, with the placeholder


class Redactor:
    """Replaces personal data.

    Args:
      kinds: names in `KINDS`.
      patterns: more regular expressions by their own kinds.
    """

    def __init__(
        self, kinds: Sequence[str], *, patterns: Mapping[str, str] | None = None
    ) -> None:
        self._kinds = {name: kind for name, kind in KINDS.items() if name in kinds}
        for name, pattern in (patterns or {}).items():
            accept: Callable[[str], bool] = bool  # an empty match is none
            self._kinds[name] = Kind(re.compile(pattern), " own", accept, "")

    def redact(self, text: str) -> tuple[str, dict[str, int], list[Found]]:
        """Return a text with placeholders, counts by kind, and an example of each."""
        counts: dict[str, int] = {}
        examples = []
        has_digit = _DIGIT.search(text) is not None
        for name, kind in self._kinds.items():
            if (kind.mark == "@" and "@" not in text) or not (kind.mark or has_digit):
                continue
            parts, last, count = [], 0, 0
            for match in kind.pattern.finditer(text):
                if kind.test(match[0]):
                    parts += [text[last : match.start()], placeholder(name)]
                    last, count = match.end(), count + 1
            if count:
                text = "".join([*parts, text[last:]])
                counts[name] = count
                examples.append(Found(name, _around(text, placeholder(name))))
        return text, counts, examples


def placeholder(kind: str) -> str:
    """Return what stands for a kind of personal data, such as <EMAIL>."""
    return f"<{kind.upper()}>"


def _around(text: str, mark: str) -> str:
    start = text.find(mark)
    return " ".join(text[max(start - 40, 0) : start + len(mark) + 40].split())
