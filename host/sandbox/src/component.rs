//! From uploaded bytes to something that can run: validate, compile, authenticate, load.
//!
//! A compiled artifact is native code that the host will run, so it is trusted only with a tag that this
//! installation's key has made. That is the one place where unsafe code is needed, and it is at the end of `load`.

use crate::bindings::WorkflowPre;
use crate::config::{Compiler, SandboxConfig};
use crate::describe::Description;
use crate::error::{Rejected, SandboxError};
use crate::state::State;
use crate::{Inner, compile_worker, engine_config, imports, validate};
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, OnceLock};
use tokio::sync::Semaphore;
use wasmtime::Engine;
use wasmtime::component::{Component, Linker};

const MAGIC: &[u8; 8] = b"realmcw1";
const TAG_BYTES: usize = 32;
/// Compilations at once: each may take a core and its whole memory limit.
const COMPILATIONS_MAX: usize = 2;

/// A compiled component: magic, HMAC-SHA-256 of the rest, native code.
#[derive(Clone, PartialEq, Eq)]
pub struct Artifact(Arc<[u8]>);

impl Artifact {
    /// Takes bytes that were stored; they are judged when they are loaded.
    pub fn from_bytes(bytes: Vec<u8>) -> Artifact {
        Artifact(bytes.into())
    }

    /// The bytes to store.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for Artifact {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Artifact({} bytes)", self.0.len())
    }
}

/// A component that is ready to be instantiated. Cloning is cheap.
#[derive(Clone)]
pub struct Workflow {
    loaded: Arc<LoadedComponent>,
}

struct LoadedComponent {
    name: Arc<str>,
    pre: WorkflowPre<State>,
    description: OnceLock<Arc<Description>>,
}

impl Workflow {
    /// The name it was loaded under.
    pub fn name(&self) -> Arc<str> {
        Arc::clone(&self.loaded.name)
    }

    pub(crate) fn pre(&self) -> &WorkflowPre<State> {
        &self.loaded.pre
    }

    /// What it said it serves, once somebody has asked.
    pub(crate) fn description(&self) -> &OnceLock<Arc<Description>> {
        &self.loaded.description
    }
}

/// The runtime with everything components can import.
pub(crate) struct Loader {
    engine: Engine,
    linker: Linker<State>,
    key: [u8; 32],
    compilations: Semaphore,
}

impl Loader {
    pub(crate) fn new(config: &SandboxConfig) -> Result<Loader, SandboxError> {
        let runtime = |error: wasmtime::Error| SandboxError::Runtime(format!("{error:#}"));
        let engine = Engine::new(&engine_config::runner(config.instances_max)).map_err(runtime)?;
        let mut linker = Linker::new(&engine);
        imports::add_to_linker(&mut linker).map_err(runtime)?;
        Ok(Loader {
            engine,
            linker,
            key: config.cache_key,
            compilations: Semaphore::new(COMPILATIONS_MAX),
        })
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    pub(crate) fn artifact_key(&self, wasm_sha256: &str) -> String {
        let mut digest = Sha256::new();
        digest.update(MAGIC);
        digest.update(self.compatibility());
        digest.update(wasm_sha256);
        digest
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    /// Runtime version, settings and processor, in eight bytes.
    fn compatibility(&self) -> [u8; 8] {
        let mut hasher = DefaultHasher::new();
        self.engine
            .precompile_compatibility_hash()
            .hash(&mut hasher);
        hasher.finish().to_le_bytes()
    }

    fn tag(&self, code: &[u8]) -> Hmac<Sha256> {
        let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(&self.key)
            .expect("HMAC takes keys of any length");
        mac.update(&self.compatibility());
        mac.update(code);
        mac
    }

    fn sign(&self, code: &[u8]) -> Artifact {
        let mut bytes = Vec::with_capacity(MAGIC.len() + TAG_BYTES + code.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&self.tag(code).finalize().into_bytes());
        bytes.extend_from_slice(code);
        Artifact(bytes.into())
    }

    pub(crate) fn load(&self, name: &str, artifact: &Artifact) -> Result<Workflow, SandboxError> {
        let code = self.authentic(artifact)?;
        let component = deserialize(&self.engine, code)?;
        let contract = |error: wasmtime::Error| SandboxError::Contract(format!("{error:#}"));
        let pre = self
            .linker
            .instantiate_pre(&component)
            .and_then(WorkflowPre::new)
            .map_err(contract)?;
        Ok(Workflow {
            loaded: Arc::new(LoadedComponent {
                name: name.into(),
                pre,
                description: OnceLock::new(),
            }),
        })
    }

    /// The native code of an artifact that this installation made for this runtime.
    fn authentic<'a>(&self, artifact: &'a Artifact) -> Result<Authentic<'a>, SandboxError> {
        let rest = artifact
            .0
            .strip_prefix(MAGIC)
            .ok_or(SandboxError::Artifact("it is of another format"))?;
        let (tag, code) = rest
            .split_at_checked(TAG_BYTES)
            .ok_or(SandboxError::Artifact("it is cut off"))?;
        self.tag(code).verify_slice(tag).map_err(|_| {
            SandboxError::Artifact("its tag is not one of this installation and runtime")
        })?;
        Ok(Authentic(code))
    }
}

/// Native code whose tag has been checked. Only [`Loader::authentic`] makes one.
struct Authentic<'a>(&'a [u8]);

#[allow(
    unsafe_code,
    reason = "loading native code is unsafe by nature; the type of `code` is the evidence"
)]
fn deserialize(engine: &Engine, code: Authentic<'_>) -> Result<Component, SandboxError> {
    // SAFETY: `deserialize` needs bytes that wasmtime's own compiler has made. Holding `Authentic` proves that a tag
    // over exactly these bytes was verified with the installation's key, and tags are made only in `sign`, only over
    // the output of `precompile_component`. Version, settings and processor are checked by wasmtime as well.
    let component = unsafe { Component::deserialize(engine, code.0) };
    component.map_err(|error| {
        tracing::error!(
            error = format!("{error:#}"),
            "an authentic artifact cannot be loaded"
        );
        SandboxError::Artifact("the runtime refuses it")
    })
}

/// Checks and compiles an upload, and tries that the result can be loaded.
pub(crate) async fn compile(inner: &Arc<Inner>, wasm: Vec<u8>) -> Result<Artifact, Rejected> {
    let Inner { loader, config, .. } = &**inner;
    let bytes_max = config.limits.memory_bytes_max;
    let wasm: Arc<[u8]> = wasm.into();
    let checked = Arc::clone(&wasm);
    on_a_thread(move || validate::validate(&checked, bytes_max)).await??;

    let _turn = loader
        .compilations
        .acquire()
        .await
        .map_err(|error| Rejected::Host(std::io::Error::other(error)))?;
    let code = match &config.compiler {
        Compiler::InProcess => {
            let engine = loader.engine.clone();
            on_a_thread(move || engine.precompile_component(&wasm))
                .await?
                .map_err(|error| Rejected::Malformed(format!("{error:#}")))?
        }
        Compiler::Child {
            program,
            args,
            memory_bytes_max,
            wall_ms_max,
        } => compile_worker::run(program, args, *memory_bytes_max, *wall_ms_max, &wasm).await?,
    };
    // A tag over hundreds of megabytes takes a while, and so does loading them.
    let inner = Arc::clone(inner);
    on_a_thread(move || {
        let artifact = inner.loader.sign(&code);
        match inner.loader.load("upload", &artifact) {
            Ok(_) => Ok(artifact),
            Err(SandboxError::Contract(what)) => Err(Rejected::World(what)),
            Err(error) => Err(Rejected::Host(std::io::Error::other(error))),
        }
    })
    .await?
}

async fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Rejected> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Rejected::Host(std::io::Error::other(error)))
}
