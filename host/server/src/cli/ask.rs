//! `realm run`: one question to one model, through the sandbox as in the server, without the server.

use crate::chat_template::chat_template;
use crate::config::{Activations, CallLimits, model_name_of};
use crate::workflows::passthrough_wasm;
use anyhow::{Context, Result, bail};
use realm_engine::text::{Chat, ChatMessage};
use realm_engine::{Engine, EngineConfig, Gguf, ModelOptions, Policy};
use realm_sandbox::{
    CallRequest, Compiler, Hooks, Invocation, LogLevel, ModelSet, Prompt, ReplyEvent, RequestKind,
    Sandbox, SandboxConfig, Tenant, TenantMemory, Workflow,
};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Nobody else shares the machine's model here, so an answer may take its time.
const DEADLINE: Duration = Duration::from_secs(3600);

#[derive(clap::Args)]
pub(super) struct Run {
    /// GGUF file
    model: PathBuf,
    /// The question
    #[arg(short, long)]
    prompt: String,
    /// Continue the prompt as plain text, without the chat template
    #[arg(long)]
    raw: bool,
    /// Chat template to use in place of the model's: a Jinja file, or a name such as chatml
    #[arg(long, value_name = "FILE|NAME", conflicts_with = "raw")]
    chat_template: Option<String>,
    /// Sampling temperature; 0 always takes the most likely token
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Most tokens to generate
    #[arg(long, value_name = "TOKENS", default_value_t = 512)]
    max_tokens: u32,
    /// Seed for sampling: the same seed gives the same answer
    #[arg(long)]
    seed: Option<u64>,
    /// Threads to compute with; 0 means one per processor
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// Precision of activations: a server uses mixed, but a single question can afford int16
    #[arg(long, value_name = "BITS", default_value = "int16")]
    activations: Activations,
}

/// What the component logs goes nowhere: it is our own and says nothing.
struct NoLog;

impl Hooks for NoLog {
    fn log(&self, _: &Tenant, _: &str, _: LogLevel, _: &str) {}
}

pub(super) async fn run(run: Run) -> Result<()> {
    let name = model_name_of(&run.model);
    let engine = load(&run, &name)?;
    let policy = Policy {
        max_tokens: Some(run.max_tokens),
        temperature: run.temperature,
        seed: run.seed,
        ..Policy::default()
    };
    policy
        .validate(engine.client().facts().vocab_size)
        .map_err(anyhow::Error::msg)?;
    let (sandbox, workflow) = passthrough().await?;
    let request = CallRequest {
        id: "run".to_owned(),
        kind: kind(run.prompt, run.raw).into(),
        model: name.clone(),
        policy,
        prompt_logprobs: None,
        choices: 1,
        deadline: DEADLINE,
    };
    let caller = caller(ModelSet::new(BTreeMap::from([(name, engine.client())])));
    print(sandbox.invoke(&workflow, &caller, request)).await?;
    engine.shutdown();
    Ok(())
}

/// A sandbox with the component that answers. It is our own and trusted, so it is compiled right here.
async fn passthrough() -> Result<(Sandbox, Workflow)> {
    let config = SandboxConfig {
        compiler: Compiler::InProcess,
        instances_max: 1,
        ..SandboxConfig::default()
    };
    let sandbox = Sandbox::new(config, Arc::new(NoLog)).context("starting the sandbox")?;
    let artifact = sandbox
        .compile(passthrough_wasm())
        .await
        .context("compiling passthrough")?;
    let workflow = sandbox
        .load("passthrough", &artifact)
        .context("loading passthrough")?;
    Ok((sandbox, workflow))
}

/// The only tenant there is.
fn caller(models: ModelSet) -> Tenant {
    let limits = CallLimits {
        wall_ms_max: u64::try_from(DEADLINE.as_millis()).unwrap_or(u64::MAX),
        ..CallLimits::default()
    };
    let limits = limits.to_sandbox();
    Tenant {
        id: 1,
        name: "local".into(),
        weight: 1,
        kv_blocks_max: u32::MAX,
        memory: Arc::new(TenantMemory::new(limits.memory_bytes_max)),
        limits,
        models,
    }
}

/// The question as a request.
fn kind(prompt: String, raw: bool) -> RequestKind {
    if raw {
        return RequestKind::Completion {
            prompt: Prompt::Text(prompt),
            echo: false,
        };
    }
    let message = ChatMessage::new("user", prompt);
    RequestKind::Chat(Chat::new([message]))
}

/// Prints the answer as it comes.
async fn print(mut invocation: Invocation) -> Result<()> {
    let mut out = std::io::stdout();
    while let Some(event) = invocation.next().await {
        match event {
            ReplyEvent::Delta { text, .. } => {
                out.write_all(text.as_bytes())?;
                out.flush()?;
            }
            ReplyEvent::End(Ok(_)) => writeln!(out)?,
            ReplyEvent::End(Err(error)) => bail!("{}", error.public()),
            ReplyEvent::Json(_)
            | ReplyEvent::Echo { .. }
            | ReplyEvent::Prompt(_)
            | ReplyEvent::ChoiceFinished { .. } => {}
        }
    }
    Ok(())
}

fn load(run: &Run, name: &str) -> Result<Engine> {
    let path = run.model.display();
    let gguf = Gguf::open(&run.model).with_context(|| format!("cannot read the model {path}"))?;
    let options = ModelOptions {
        threads: run.threads,
        activations: run.activations.into(),
        chat_template: run
            .chat_template
            .as_deref()
            .map(chat_template)
            .transpose()?,
        ..ModelOptions::default()
    };
    let config = EngineConfig {
        model_name: name.to_owned(),
        ..EngineConfig::default()
    };
    Engine::load(gguf, options, config).with_context(|| format!("cannot run the model {path}"))
}
