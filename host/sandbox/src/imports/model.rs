//! `realm:llm/model`: opening models, and what needs no KV.

use crate::GuestError;
use crate::bindings::realm::llm::model::{Facts, Host, HostModel};
use crate::bindings::realm::llm::types::{Message, Role, Tool};
use crate::cpu::{CpuMeter, off_thread};
use crate::imports::Failure;
use crate::memory::{HANDLE_BYTES, Held};
use crate::state::State;
use realm_engine::Client;
use realm_engine::text::{ChatMessage, Specials, TextError, ToolCall};
use serde_json::{Value, json};
use std::sync::Arc;
use wasmtime::component::Resource;

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
        let _held = (self.memory).hold(client.text().encode_bytes_max(text.len(), tokens_max))?;
        off_thread(&self.cpu, move || {
            let encoded = (client.text()).encode(&text, Specials::Literal, false, tokens_max);
            encoded.map_err(|error| Failure::invalid(error.to_string()))
        })
        .await?
    }

    async fn decode(
        &mut self,
        model: Resource<ModelHandle>,
        tokens: Vec<u32>,
    ) -> Result<Vec<u8>, Failure> {
        // A token can be a thousand times as long as its id: bound the ids first, then what comes of them.
        let client = self.table.get(&model)?.client.clone();
        let bytes_max = self.tenant.limits.json_bytes_max;
        let bytes: usize = tokens
            .iter()
            .map(|token| client.text().token_bytes(*token).len())
            .sum();
        check_bytes(bytes, bytes_max)?;
        Ok(client.text().decode(&tokens))
    }

    async fn render(
        &mut self,
        model: Resource<ModelHandle>,
        messages: Vec<Message>,
        tools: Vec<Tool>,
        open_turn: bool,
    ) -> Result<Vec<u32>, Failure> {
        let client = self.table.get(&model)?.client.clone();
        let bytes: usize = messages
            .iter()
            .map(message_bytes)
            .chain(tools.iter().map(tool_bytes))
            .sum();
        check_bytes(bytes, self.tenant.limits.json_bytes_max)?;
        let messages = messages.into_iter().map(chat_message).collect();
        let tools = tools
            .into_iter()
            .map(tool_value)
            .collect::<Result<_, _>>()?;
        let context = client.facts().context_length;
        let _held = (self.memory).hold(client.text().chat_bytes_max(bytes, context as usize))?;
        chat_tokens(&Arc::clone(&self.cpu), client, messages, tools, open_turn).await
    }

    async fn drop(&mut self, model: Resource<ModelHandle>) -> wasmtime::Result<()> {
        self.table.delete(model)?;
        Ok(())
    }
}

/// The chat in tokens. Long chats take a while, so this runs where it may.
pub(crate) async fn chat_tokens(
    cpu: &Arc<CpuMeter>,
    client: Client,
    messages: Vec<ChatMessage>,
    tools: Vec<Value>,
    open_turn: bool,
) -> Result<Vec<u32>, Failure> {
    let context = client.facts().context_length;
    off_thread(cpu, move || {
        let tokens = (client.text()).chat_tokens(&messages, &tools, open_turn, context as usize);
        tokens.map_err(|error| not_tokens(error, context))
    })
    .await?
}

/// Why a prompt has no tokens: the model's context of `context` tokens does not hold it, or the template refuses it.
pub(crate) fn not_tokens(error: TextError, context: u32) -> Failure {
    match error.is_too_long() {
        true => GuestError::ContextFull(context).into(),
        false => Failure::invalid(error.to_string()),
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

/// Bytes of all that a message says.
fn message_bytes(message: &Message) -> usize {
    let optional = |text: &Option<String>| text.as_ref().map_or(0, String::len);
    let calls = message.tool_calls.iter();
    let calls = calls.map(|call| call.id.len() + call.name.len() + call.arguments_json.len());
    message.content.len()
        + optional(&message.name)
        + optional(&message.tool_call_id)
        + calls.sum::<usize>()
}

fn tool_bytes(tool: &Tool) -> usize {
    tool.name.len() + tool.description.len() + tool.parameters_json.len()
}

fn chat_message(message: Message) -> ChatMessage {
    let role = match message.role {
        Role::System => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
        Role::Tool => "tool",
    };
    ChatMessage {
        role: role.to_owned(),
        content: message.content,
        name: message.name,
        tool_call_id: message.tool_call_id,
        tool_calls: message
            .tool_calls
            .into_iter()
            .map(|call| ToolCall {
                id: call.id,
                name: call.name,
                arguments_json: call.arguments_json,
            })
            .collect(),
    }
}

/// As chat templates expect tools: the way OpenAI writes them.
fn tool_value(tool: Tool) -> Result<Value, Failure> {
    let parameters: Value = serde_json::from_str(&tool.parameters_json).map_err(|error| {
        Failure::invalid(format!(
            "the parameters of tool {:?} are no JSON: {error}",
            tool.name
        ))
    })?;
    Ok(json!({
        "type": "function",
        "function": {
            "name": tool.name,
            "description": tool.description,
            "parameters": parameters,
            "strict": tool.strict,
        }
    }))
}
