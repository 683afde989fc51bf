"""Trees in the chat format of a pretrained model: the improver is an ordinary second turn of the conversation."""

from pit.data.chat.format import ChatFormat
from pit.data.chat.roles import role_format, scored_source
from pit.data.chat.template import ChatTemplate

__all__ = ["ChatFormat", "ChatTemplate", "role_format", "scored_source"]
