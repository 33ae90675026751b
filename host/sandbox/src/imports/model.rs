//! `realm:llm/model`: opening models, and what needs no KV.

use crate::bindings::realm::llm::model::{Facts, Host, HostModel};
use crate::bindings::realm::llm::types::{Message, PromptEnd, Tool};
use crate::imports::Failure;
use crate::imports::prompt::{ChatSize, GuestChat, chat_tokens};
use crate::memory::{HANDLE_BYTES, Held};
use crate::state::State;
use realm_engine::Client;
use realm_engine::text::Specials;
use wasmtime::component::Resource;

/// More tokens than this are decoded where it may take a while.
const TOKENS_AT_ONCE_MAX: usize = 4096;

/// A model that a component has open.
#[allow(unreachable_pub, reason = "the generated bindings re-export it")]
pub struct ModelHandle {
    pub(crate) client: Client,
    _held: Held,
}

impl Host for State {}

impl HostModel for State {
    async fn open(&mut self, name: String) -> Result<Resource<ModelHandle>, Failure> {
        let client = self.client(&name)?;
        let held = self.memory.hold(HANDLE_BYTES)?;
        Ok(self.table.push(ModelHandle {
            client,
            _held: held,
        })?)
    }

    async fn facts(&mut self, model: Resource<ModelHandle>) -> wasmtime::Result<Facts> {
        let facts = self.table.get(&model)?.client.facts();
        Ok(Facts {
            name: facts.name.clone(),
            context_length: facts.context_length,
            vocab_size: facts.vocab_size,
            can_rewind: facts.can_rewind,
        })
    }

    async fn encode(
        &mut self,
        model: Resource<ModelHandle>,
        text: String,
    ) -> Result<Vec<u32>, Failure> {
        let client = self.table.get(&model)?.client.clone();
        let bytes_max = self.tenant.limits.json_bytes_max;
        check_bytes(text.len(), bytes_max)?;
        // A text may be longer than the context: a component may cut it to pieces.
        let tokens_max = bytes_max / size_of::<u32>();
        let bytes = client.text().encode_bytes_max(text.len(), tokens_max);
        let encode = move || (client.text()).encode(&text, Specials::Literal, false, tokens_max);
        let (tokens, held) = self.worker().run(bytes, encode).await?;
        let tokens = tokens.map_err(|error| Failure::invalid(error.to_string()))?;
        self.hand_over(held, size_of_val(tokens.as_slice()))?;
        Ok(tokens)
    }

    async fn decode(
        &mut self,
        model: Resource<ModelHandle>,
        tokens: Vec<u32>,
    ) -> Result<Vec<u8>, Failure> {
        let client = self.table.get(&model)?.client.clone();
        let bytes_max = self.tenant.limits.json_bytes_max;
        // A token can be a thousand times as long as its id: bound the ids first, then what comes of them.
        let longest = client.text().text_bytes_max(tokens.len()).min(bytes_max);
        let is_long = tokens.len() > TOKENS_AT_ONCE_MAX;
        let decode = move || {
            let text = client.text();
            let lengths = tokens.iter().map(|token| text.token_bytes(*token).len());
            check_bytes(lengths.sum(), bytes_max)?;
            Ok::<_, Failure>(text.decode(&tokens))
        };
        // A list that grows is there twice for a moment.
        let (bytes, held) = match is_long {
            true => self.worker().run(3 * longest, decode).await?,
            false => self.worker().run_here(3 * longest, decode)?,
        };
        let bytes = bytes?;
        self.hand_over(held, bytes.len())?;
        Ok(bytes)
    }

    async fn render(
        &mut self,
        model: Resource<ModelHandle>,
        messages: Vec<Message>,
        tools: Vec<Tool>,
        end: PromptEnd,
        variables_json: String,
    ) -> Result<Vec<u32>, Failure> {
        let client = self.table.get(&model)?.client.clone();
        let chat = GuestChat {
            messages,
            tools,
            end,
            variables_json,
        };
        check_bytes(chat.bytes(), self.tenant.limits.json_bytes_max)?;
        let context = client.facts().context_length as usize;
        let bytes = ChatSize::of(&chat).bytes_max(client.text(), context);
        let render = move || chat_tokens(&client, chat);
        let (tokens, held) = self.worker().run(bytes, render).await?;
        let tokens = tokens?;
        self.hand_over(held, size_of_val(tokens.as_slice()))?;
        Ok(tokens)
    }

    async fn drop(&mut self, model: Resource<ModelHandle>) -> wasmtime::Result<()> {
        self.table.delete(model)?;
        Ok(())
    }
}

fn check_bytes(bytes: usize, bytes_max: usize) -> Result<(), Failure> {
    if bytes > bytes_max {
        return Err(Failure::invalid(format!(
            "{bytes} bytes of text, at most {bytes_max} are allowed"
        )));
    }
    Ok(())
}
