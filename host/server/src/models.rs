//! The models that are served, as a table that can be replaced as a whole while the server runs.

use realm_engine::{Client, EmbedderClient};
use realm_sandbox::ModelSet;

/// The models as of one moment.
#[derive(Default)]
pub struct ModelTable {
    base: Vec<BaseModel>,
    embedding: Vec<EmbeddingModel>,
    for_components: ModelSet,
}

/// A model every tenant may use.
#[derive(Clone)]
pub struct BaseModel {
    /// What clients call it.
    pub name: String,
    /// The engine that runs it.
    pub client: Client,
    /// Seconds since 1970 at which it was loaded.
    pub created: i64,
    /// The most bytes of a text that one token stands for; `usize::MAX` where there is no such number.
    pub token_bytes_max: usize,
}

impl BaseModel {
    /// A model that was just loaded.
    pub fn new(name: String, client: Client, created: i64) -> BaseModel {
        BaseModel {
            name,
            created,
            token_bytes_max: client.text().text_bytes_max(1),
            client,
        }
    }
}

/// A model that gives every tenant embeddings.
#[derive(Clone)]
pub struct EmbeddingModel {
    /// What clients call it.
    pub name: String,
    /// The thread that runs it.
    pub client: EmbedderClient,
    /// Seconds since 1970 at which it was loaded.
    pub created: i64,
}

/// Two models with one name.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("two models are called {0:?}; give one of them another name")]
pub struct DuplicateName(pub String);

impl ModelTable {
    /// A table of these models. The first base model is the one that is meant where none is named.
    ///
    /// # Errors
    /// When two have the same name.
    pub fn new(
        base: Vec<BaseModel>,
        embedding: Vec<EmbeddingModel>,
    ) -> Result<ModelTable, DuplicateName> {
        let names = base.iter().map(|model| &model.name);
        let names = names.chain(embedding.iter().map(|model| &model.name));
        let mut names: Vec<&String> = names.collect();
        names.sort_unstable();
        if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(DuplicateName(pair[0].clone()));
        }
        let engines = base.iter();
        let engines = engines.map(|model| (model.name.clone(), model.client.clone()));
        let for_components = ModelSet::new(engines.collect());
        Ok(ModelTable {
            base,
            embedding,
            for_components,
        })
    }

    /// The base models.
    pub fn base(&self) -> &[BaseModel] {
        &self.base
    }

    /// The base model of this name.
    pub fn base_named(&self, name: &str) -> Option<&BaseModel> {
        self.base.iter().find(|model| model.name == name)
    }

    /// The models that give embeddings.
    pub fn embedding(&self) -> &[EmbeddingModel] {
        &self.embedding
    }

    /// The one of this name.
    pub fn embedding_named(&self, name: &str) -> Option<&EmbeddingModel> {
        self.embedding.iter().find(|model| model.name == name)
    }

    /// What components may open.
    pub fn for_components(&self) -> ModelSet {
        self.for_components.clone()
    }

    /// Whether every model can still answer.
    pub fn is_running(&self) -> bool {
        self.base.iter().all(|model| !model.client.is_stopped())
            && self
                .embedding
                .iter()
                .all(|model| !model.client.is_stopped())
    }
}
