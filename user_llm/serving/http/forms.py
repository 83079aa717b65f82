"""What is sent to the server, and what it sends back: OpenAI's forms, and those of users.

A field that is not known is refused, so that nobody waits for what it would have done; and so is
one of another type than is said, which would be read as something else than was meant.
"""

import json
from typing import Annotated, Any, Literal
from uuid import uuid4

from fastapi import Path
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, model_validator

from user_llm.inference.sampling import Sampling

_SIGN = r"[^\s/\x00-\x1f\x7f"
USER = rf"^(\.*{_SIGN}.]{_SIGN}]*|\.{{3,}})$"  # "." and ".." cannot be reached in a path
MOST = 1000  # events of a request, users of another
UserId = Annotated[str, Path(min_length=1, max_length=128, pattern=USER)]
UserName = Annotated[str, Field(min_length=1, max_length=128, pattern=USER)]
Finish = Literal["stop", "length"]


class Form(BaseModel):
    """What is sent, or a part of it."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Body(Form):
    """All that is sent."""

    @model_validator(mode="before")
    @classmethod
    def _can_be_sent_back(cls, body: Any) -> Any:
        """Refuses what JSON's readers take and its writers do not: NaN, halves of characters."""
        if isinstance(body, dict):
            try:
                json.dumps(body, allow_nan=False, ensure_ascii=False).encode()
            except (ValueError, RecursionError) as error:
                raise ValueError(f"JSON cannot hold all of it: {error}") from error
        return body


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _or_one(kind: Any, number: Any) -> Any:
    """So that in place of a list of such a number of a kind of text, one alone may be sent."""
    many = Annotated[list[kind], number]
    return BeforeValidator(_listed, json_schema_input_type=kind | many)


Text = Annotated[str, Field(min_length=1)]
STOPS, PROMPTS = Field(max_length=4), Field(min_length=1, max_length=8)
READ = Field(min_length=1, max_length=MOST)


class StreamOptions(Form):
    include_usage: bool = False


class Asking(Body):
    """What requests for words have in common."""

    model: str
    user: UserName | None = None  # whose memory is read; without, the language model's alone
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float = Field(default=1.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0, lt=2**31)
    min_p: float = Field(default=0.0, ge=0, le=1)
    repetition_penalty: float = Field(default=1.0, gt=0, le=2)
    frequency_penalty: float = Field(default=0.0, ge=0, le=0)
    presence_penalty: float = Field(default=0.0, ge=0, le=0)
    seed: int | None = Field(default=None, ge=0, lt=2**31)
    stop: Annotated[list[Text], STOPS, _or_one(Text, STOPS)] | None = None
    n: int = Field(default=1, ge=1, le=8)
    stream: bool = False
    stream_options: StreamOptions | None = None
    items_only: bool = False  # the answer is the title of an item

    def sampling(self, nth: int) -> Sampling:
        """How the nth answer is drawn."""
        seed = uuid4().int if self.seed is None else self.seed + nth
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            seed=seed % 2**31,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
        )


class TextPart(Form):
    type: Literal["text"]
    text: str


class Message(Form):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None  # read by nobody

    @property
    def text(self) -> str:
        """All that is said."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class ChatRequest(Asking):
    messages: list[Message] = Field(min_length=1, max_length=MOST)
    max_completion_tokens: int | None = Field(default=None, ge=1)


class CompletionRequest(Asking):
    prompt: Annotated[list[Text], PROMPTS, _or_one(Text, PROMPTS)]


class EmbeddingRequest(Body):
    """Of users: `input` are their ids."""

    model: str
    input: Annotated[list[UserName], READ, _or_one(UserName, READ)]
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = None  # who asks; read by nobody


class Event(BaseModel):
    """One event: its item, when it was, and what else the data set has of events."""

    model_config = ConfigDict(extra="allow", strict=True)

    item: Annotated[str, Field(min_length=1, max_length=256)] | int
    timestamp: Annotated[float, Field(gt=-62e9, lt=253e9)] | str | None = None  # by default now
    __pydantic_extra__: dict[str, JsonValue]


class EventsRequest(Body):
    events: list[Event] = Field(max_length=MOST)  # oldest first
    if_version: int | None = Field(default=None, ge=0)  # 0: the user is not known yet


class RecommendationRequest(Body):
    user: UserName
    k: int = Field(default=10, ge=1, le=100)
    exclude_seen: bool = True


class Problem(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class Refused(BaseModel):
    """OpenAI's form of an error."""

    error: Problem


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Said(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str


class ChatChoice(BaseModel):
    index: int
    message: Said
    finish_reason: Finish
    logprobs: None = None


class Choice(BaseModel):
    index: int
    text: str
    finish_reason: Finish
    logprobs: None = None


class Answered(BaseModel):
    id: str
    created: int
    model: str
    usage: Usage


class ChatCompletion(Answered):
    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]


class Completion(Answered):
    object: Literal["text_completion"] = "text_completion"
    choices: list[Choice]


class Embedding(BaseModel):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Read(BaseModel):
    prompt_tokens: int = 0
    total_tokens: int = 0


class Embeddings(BaseModel):
    object: Literal["list"] = "list"
    model: str
    data: list[Embedding]
    usage: Read = Read()


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "user-llm"
    question: str  # how the next item is asked for


class Models(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class Changed(BaseModel):
    user: str
    version: int
    told: int  # events there were in all
    unknown: int  # of those that are kept, or were just sent: whose item the model does not know


class User(Changed):
    kept: int  # of them
    current: bool  # whether the model that is served has read them
    events: list[dict[str, JsonValue]]  # with their titles, oldest first


class UserNames(BaseModel):
    users: list[str]  # those that changed last first


class Deleted(BaseModel):
    user: str
    deleted: Literal[True] = True


class Item(BaseModel):
    item: str
    title: str


class Items(BaseModel):
    items: list[Item]


class Recommended(Item):
    score: float  # log-probability


class Recommendations(BaseModel):
    user: str
    known: bool  # else they are for nobody in particular
    data: list[Recommended]


class Health(BaseModel):
    status: str
