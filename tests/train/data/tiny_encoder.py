"""A text encoder with some hundred random weights, and a tokenizer of three words."""

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

WORDS = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", "a", "red", "wall"])}


def save_encoder(folder, kind, seed=0, tokenizer=None):
    """With random weights: some hundred of them."""
    config: dict = {"vocab_size": 9}
    if kind == "BertModel":
        config |= dict(hidden_size=6, num_hidden_layers=1, num_attention_heads=2)
        config |= dict(intermediate_size=8, max_position_embeddings=16)
    else:
        config |= dict(d_model=6, d_kv=3, d_ff=8, num_layers=1, num_heads=2)
    model = getattr(transformers, kind)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model(model.config_class(**config)).save_pretrained(folder)
    words = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = dict(pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special)
    made.save_pretrained(tokenizer or folder)
    return folder


def states_of(folder, kind, ids):
    """By transformers alone."""
    model = getattr(transformers, kind).from_pretrained(folder).eval()
    model = model.get_encoder() if kind == "UMT5Model" else model
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).last_hidden_state[0]
