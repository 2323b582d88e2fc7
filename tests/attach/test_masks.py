"""Padding must not change a logit, whatever says where it is."""

import warnings

import pytest
import torch
from torch import nn

import balanced_grad as bg

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the import, whichever they are in this release
    transformers = pytest.importorskip("transformers")

LENGTHS = torch.tensor([6, 3, 1])
REAL = torch.arange(6) < LENGTHS.unsqueeze(1)
SIZE = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 16}


class Around(nn.Module):
    """A model around one encoder, which passes on what it gets, or what ``translate`` makes of it."""

    def __init__(self, encoder, translate=lambda *args, **kwargs: (args, kwargs)):
        super().__init__()
        self.encoder = encoder
        self.translate = translate

    def forward(self, *args, **kwargs):
        args, kwargs = self.translate(*args, **kwargs)
        return self.encoder(*args, **kwargs)


class Embedding(nn.Module):
    """The simplest encoder that takes a mask and does not use it."""

    def __init__(self, name="attention_mask", dtype=torch.float32):
        super().__init__()
        self.table = nn.Embedding(9, 4, dtype=dtype)
        self.name = name

    def forward(self, tokens, attention_mask=None, **kwargs):
        return self.table(tokens)


def attached(model, encoder=None, **options):
    return bg.attach(model, {"text": encoder or model.encoder}, num_outputs=3, **options)


def tokens(padding=0):
    torch.manual_seed(0)
    return torch.where(REAL, torch.randint(2, 9, REAL.shape), padding)


def assert_padding_does_not_matter(aux, call, tolerance=1e-5):
    """``call(row)`` runs the model on one row without its padding, ``call(None)`` on all of them with it."""
    call(None)
    together = aux.logits()["text"]
    assert together.isfinite().all()
    for row in range(len(LENGTHS)):
        call(row)
        torch.testing.assert_close(together[row], aux.logits()["text"][0], atol=tolerance, rtol=tolerance)


def build(name):
    torch.manual_seed(0)
    if name == "distilbert":
        size = {"dim": 16, "hidden_dim": 16, "n_layers": 1, "n_heads": 2}
        return transformers.DistilBertModel(transformers.DistilBertConfig(vocab_size=9, **size))
    config = transformers.BertConfig(vocab_size=9, max_position_embeddings=8, **SIZE)
    return transformers.BertModel(config, add_pooling_layer=name == "bert with a pooler")


@pytest.mark.parametrize("positional", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["distilbert", "bert", "bert with a pooler"])
def test_of_text_models(name, dtype, positional):
    model = Around(build(name).to(dtype)).eval()
    aux = attached(model)

    def call(row):
        rows = slice(None) if row is None else slice(row, row + 1)
        length = 6 if row is None else LENGTHS[row]
        x, mask = tokens()[rows, :length], REAL[rows, :length].long()
        model(x, mask) if positional else model(input_ids=x, attention_mask=mask)

    assert_padding_does_not_matter(aux, call, tolerance=1e-5 if dtype == torch.float32 else 3e-2)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["distilbert", "bert"])
def test_of_the_layers_inside_which_get_an_extended_mask(name, attention):
    model = build(name).eval()
    model.set_attn_implementation(attention)
    aux = attached(model, model.encoder if name == "bert" else model.transformer)

    def call(row):
        rows, length = (slice(None), 6) if row is None else (slice(row, row + 1), LENGTHS[row])
        model(input_ids=tokens()[rows, :length], attention_mask=REAL[rows, :length].long())

    assert_padding_does_not_matter(aux, call)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_of_a_model_with_adapters():
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(build("distilbert"), peft.LoraConfig(target_modules=["q_lin"]))
    model = Around(adapted).eval()
    aux = attached(model)

    def call(row):
        rows, length = (slice(None), 6) if row is None else (slice(row, row + 1), LENGTHS[row])
        model(input_ids=tokens()[rows, :length], attention_mask=REAL[rows, :length].long())

    assert_padding_does_not_matter(aux, call)


def wav2vec2(kind):
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        **SIZE,
        conv_dim=(8, 8),
        conv_stride=(5, 2),
        conv_kernel=(10, 3),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        feat_extract_norm="layer",
        **({"do_stable_layer_norm": True} if kind != "WavLM" else {}),
    )
    return getattr(transformers, f"{kind}Model")(config).eval()


@pytest.mark.filterwarnings("ignore")  # of HuBERT and WavLM, about attention
@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize("kind", ["Wav2Vec2", "Hubert", "WavLM"])
def test_of_speech_models_whose_mask_counts_samples(kind, inner):
    speech = wav2vec2(kind)
    model = Around(Around(speech) if inner else speech)
    aux = attached(model)
    lengths = torch.tensor([400, 300, 200])
    real = torch.arange(400) < lengths.unsqueeze(1)
    wave = torch.randn(3, 400) * real

    def call(row):
        rows = slice(None) if row is None else slice(row, row + 1)
        length = 400 if row is None else lengths[row]
        model(wave[rows, :length], attention_mask=real[rows, :length].long())

    assert_padding_does_not_matter(aux, call, tolerance=1e-4)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_of_torch_transformers(kind, batch_first, training):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=batch_first)
    model = Around(nn.TransformerEncoder(layer, 1, enable_nested_tensor=batch_first)).train(training)
    aux = attached(model)
    x = torch.randn(3, 6, 4)

    def call(row):
        rows, length = (slice(None), 6) if row is None else (slice(row, row + 1), int(LENGTHS[row]))
        padding = ~REAL[rows, :length]
        mask = padding if kind == "bool" else torch.zeros(padding.shape).masked_fill(padding, -torch.inf)
        part = x[rows, :length]
        with torch.set_grad_enabled(training):
            model(part if batch_first else part.transpose(0, 1), src_key_padding_mask=mask)

    assert_padding_does_not_matter(aux, call)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_time_comes_first_in_recurrent_layers(kind):
    """Also where the batch is as long as the sequence."""
    model = Around(kind(4, 5))
    aux = attached(model)
    output, _ = model(torch.randn(3, 3, 4))
    torch.testing.assert_close(aux.logits()["text"], aux.heads["text"](output.mean(0)))


EXTENDED = {
    "bool": REAL[:, None, None, :].expand(3, 1, 6, 6),
    "added": torch.zeros(3, 1, 1, 6).masked_fill(~REAL[:, None, None, :], torch.finfo(torch.float32).min),
    "causal": (REAL[:, None, None, :] & torch.ones(6, 6).tril().bool()),
    "per query": REAL[:, None, :].expand(3, 6, 6).long(),
    "float": REAL.float(),
}


@pytest.mark.parametrize("kind", EXTENDED)
def test_masks_that_were_extended_for_the_attention(kind):
    model = Around(Embedding())
    aux = attached(model)
    z = model(tokens(), attention_mask=EXTENDED[kind])
    wanted = torch.stack([z[row, :length].mean(0) for row, length in enumerate(LENGTHS)])
    torch.testing.assert_close(aux.logits()["text"], aux.heads["text"](wanted))


def test_a_row_without_a_real_token_is_zeros_and_no_sum_overflows():
    model = Around(Embedding(dtype=torch.float16))
    with torch.no_grad():
        model.encoder.table.weight.fill_(6e4)
    aux = attached(model)
    mask = REAL.clone()
    mask[1] = False
    model(tokens(), attention_mask=mask)
    features = aux._source.features["text"]
    assert features.tolist() == [[6e4] * 4, [0.0] * 4, [6e4] * 4]
    features.sum().backward()
    assert model.encoder.table.weight.grad.isfinite().all()


def test_padding_of_nan_does_not_matter():
    model = Around(Embedding())
    aux = attached(model)
    with torch.no_grad():
        model.encoder.table.weight[0] = torch.nan
    model(tokens(), attention_mask=REAL)
    assert aux.logits()["text"].isfinite().all()


def test_nothing_is_read_on_the_host():
    from tests.conftest import NoHostReads

    model = Around(Embedding())
    aux = attached(model, widths={"text": 4})
    with NoHostReads():
        model(tokens(), attention_mask=REAL)
        aux.losses(None, torch.tensor([0, 1, 2]))


class TestAsked:
    def assert_masked(self, model, aux, **inputs):
        z = model(**inputs)
        wanted = torch.stack([z[row, :length].mean(0) for row, length in enumerate(LENGTHS)])
        torch.testing.assert_close(aux.logits()["text"], aux.heads["text"](wanted))

    @pytest.mark.parametrize("mask", ["real", {"text": "real"}])
    def test_an_argument_of_the_encoder(self, mask):
        model = Around(Embedding())
        self.assert_masked(model, attached(model, mask=mask), tokens=tokens(), real=REAL)

    def test_an_argument_of_the_model(self):
        model = Around(Embedding(), lambda tokens, text_mask: ((tokens,), {}))
        self.assert_masked(model, attached(model, mask="text_mask"), tokens=tokens(), text_mask=REAL.long())

    def test_true_is_padding_where_the_name_says_so(self):
        model = Around(Embedding(), lambda tokens, padding: ((tokens,), {}))
        self.assert_masked(model, attached(model, mask="padding"), tokens=tokens(), padding=~REAL)

    def test_lengths(self):
        model = Around(Embedding(), lambda tokens, lengths: ((tokens,), {}))
        self.assert_masked(model, attached(model, mask="lengths"), tokens=tokens(), lengths=LENGTHS)

    def test_inside_a_batch_that_is_a_mapping(self):
        model = Around(Embedding(), lambda batch: ((batch["tokens"],), {}))
        self.assert_masked(model, attached(model, mask="real"), batch={"tokens": tokens(), "real": REAL})

    def test_none_is_no_mask(self):
        model = Around(Embedding())
        aux = attached(model, mask={"text": None})
        z = model(tokens(), attention_mask=REAL)
        torch.testing.assert_close(aux.logits()["text"], aux.heads["text"](z.mean(1)))

    def test_a_name_that_nothing_was_called_with(self):
        model = Around(Embedding())
        aux = attached(model, mask={"text": "atention_mask"})
        with pytest.warns(bg.InactiveBalancerWarning, match=r"mask= names 'atention_mask' .*\['attention_mask', 'toke"):
            model(tokens(), attention_mask=REAL)
        model(tokens(), attention_mask=REAL)  # said once
        assert aux.logits()["text"].shape == (3, 3)

    def test_of_no_modality_or_with_mute(self):
        model = Around(Embedding())
        with pytest.raises(ValueError, match=r"mask\['txt'\]: there is no such modality"):
            attached(model, mask={"txt": "real"})
        with pytest.raises(ValueError, match="mask= has no meaning with mute="):
            bg.attach(model, ("text",), mute={"text": "tokens"}, mask="real")


class TestPool:
    def test_gets_the_mask_if_it_asks_for_it(self):
        seen = []
        model = Around(Embedding())
        aux = attached(model, pool=lambda output, mask: seen.append(mask) or output[:, 0])
        model(tokens(), attention_mask=REAL.long())
        assert torch.equal(seen.pop(), REAL)
        model(tokens())
        assert seen == [None]
        aux.detach()

    def test_as_a_module_and_without_a_mask(self):
        class Last(nn.Module):
            def forward(self, output, mask=None):
                return output[torch.arange(len(output)), mask.sum(1) - 1]

        model = Around(Embedding())
        aux = attached(model, pool=Last())
        z = model(tokens(), attention_mask=REAL)
        torch.testing.assert_close(aux.logits()["text"], aux.heads["text"](z[range(3), LENGTHS - 1]))
        plain = attached(model, pool=lambda output: output.sum(1))
        model(tokens(), attention_mask=REAL)
        torch.testing.assert_close(plain.logits()["text"], plain.heads["text"](z.sum(1)))


def test_a_mask_that_does_not_fit_is_said_once():
    model = Around(Embedding())
    aux = attached(model)
    long = torch.ones(3, 9)
    with pytest.warns(bg.InactiveBalancerWarning, match=r"attention_mask of 'text', \(3, 9\), .* \(3, 6, 4\).*pool="):
        z = model(tokens(), attention_mask=long)
    model(tokens(), attention_mask=long)
    torch.testing.assert_close(aux.logits()["text"], aux.heads["text"](z.mean(1)))


def test_the_mask_of_another_sequence_is_not_taken():
    config = transformers.BartConfig(
        vocab_size=9,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=8,
        decoder_ffn_dim=8,
        max_position_embeddings=8,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        decoder_start_token_id=2,
    )
    model = Around(transformers.BartModel(config)).eval()
    aux = attached(model)
    x = {"input_ids": tokens(), "attention_mask": REAL.long(), "decoder_input_ids": tokens()}
    z = model(**x).last_hidden_state
    torch.testing.assert_close(aux.logits()["text"], aux.heads["text"](z.mean(1)))
    z = model(**x, decoder_attention_mask=REAL.long()).last_hidden_state
    wanted = torch.stack([z[row, :length].mean(0) for row, length in enumerate(LENGTHS)])
    torch.testing.assert_close(aux.logits()["text"], aux.heads["text"](wanted))
