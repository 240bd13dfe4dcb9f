"""Stop words: frequent words that a vocabulary of words may leave out."""

from collections.abc import Sequence

from lmjax.data.sources.documents import expand_path
from lmjax.data.sources.text import read_text
from lmjax.errors import ConfigError, UserError, nearest

# Function words and the endings of contractions, but no negation: "not good" is not
# "good".
ENGLISH = """
a an the this that these those
i me my mine myself we us our ours ourselves you your yours yourself yourselves
he him his himself she her hers herself it its itself they them their theirs
themselves one who whom whose which what
am is are was were be been being do does did doing done have has had having
can could may might must shall should will would 's 're 've 'll 'd 'm
and or but if then than so as because while until though although
about above across after against along among around at before behind below beside
between beyond by down during for from in inside into of off on onto out outside
over since through to toward towards under up upon with within
again also here how just there too when where why
all any both each every other some such same own
"""


def read(name: str) -> Sequence[str]:
    """Return the words that `config.tokenizer.stop_words` names.

    Args:
      name: "english", a file of words separated by white space, or "" for none.

    Raises:
      ConfigError: there is no such list or file.
    """
    if name == "english":
        return ENGLISH.split()
    if not name:
        return ()
    leaf = "config.tokenizer.stop_words"
    try:
        return read_text(expand_path(name, leaf=leaf), path=leaf).split()
    except UserError as error:
        why = str(error).removeprefix(f"{leaf}: ")
        raise ConfigError(
            f"{leaf} = {name!r}: neither 'english' nor a file of words"
            f"{nearest(name, ['english'])}: {why}"
        ) from error
