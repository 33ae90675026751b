//! What an upload must be before anybody compiles it: a component, of bounded size, with granted imports.
//!
//! The limits are far below what the format allows and far above what honest programs have. They keep hostile uploads
//! from being expensive; that a component is *valid* is checked here too, that it is *safe* is the runtime's business.

use crate::error::Rejected;
use wasmparser::{
    ComponentExportSectionReader, ComponentExternalKind, ComponentImportSectionReader,
    ComponentTypeRef, DataSectionReader, Encoding, MemorySectionReader, Operator, Parser, Payload,
    TableSectionReader, TypeBounds, Validator, WasmFeatures,
};

/// Bytes of one component, at most.
pub const COMPONENT_BYTES_MAX: usize = 16 << 20;
const MODULES_MAX: u64 = 8;
const NESTED_COMPONENTS_MAX: u64 = 16;
const NESTING_MAX: u64 = 3;
const FUNCTIONS_MAX: u64 = 50_000;
const BODY_BYTES_MAX: u64 = 512 << 10;
const LOCALS_MAX: u64 = 2_000;
const BRANCH_TABLE_MAX: u64 = 16_384;
const BLOCK_DEPTH_MAX: u64 = 1_000;
const DATA_BYTES_MAX: u64 = 8 << 20;
const SEGMENTS_MAX: u64 = 20_000;
const TYPES_MAX: u64 = 20_000;
const ENTRIES_MAX: u64 = 20_000;
const TABLE_ELEMENTS_MAX: u64 = 20_000;
const CUSTOM_BYTES_MAX: u64 = 1 << 20;

/// What a workflow may import. WASI is inert, but toolchains link it.
const GRANTED: [&str; 6] = [
    "realm:llm/types@0.1.0",
    "realm:llm/model@0.1.0",
    "realm:llm/sequence@0.1.0",
    "realm:llm/generation@0.1.0",
    "realm:host/exchange@0.1.0",
    "realm:host/log@0.1.0",
];
const GRANTED_WASI: [&str; 6] = [
    "wasi:cli/",
    "wasi:io/",
    "wasi:clocks/",
    "wasi:random/",
    "wasi:filesystem/",
    "wasi:sockets/",
];
const WORLD_EXPORTS: [&str; 2] = ["describe", "handle"];

/// Checks an upload. `memory_bytes_max` is what a call may use, so no memory may begin larger.
pub(crate) fn validate(wasm: &[u8], memory_bytes_max: usize) -> Result<(), Rejected> {
    at_most(
        "the component's size in bytes",
        wasm.len() as u64,
        COMPONENT_BYTES_MAX as u64,
    )?;
    if !wasm.starts_with(b"\0asm") {
        return Err(Rejected::Malformed(
            "it does not begin with the magic bytes of WebAssembly".to_owned(),
        ));
    }
    if Parser::is_core_wasm(wasm) {
        return Err(Rejected::Malformed(
            "it is a core module; make a component of it (build for wasm32-wasip2, or use wasm-tools component new)"
                .to_owned(),
        ));
    }
    let mut counts = Counts {
        memory_bytes_max: memory_bytes_max as u64,
        ..Counts::default()
    };
    for payload in Parser::new(0).parse_all(wasm) {
        counts.payload(&payload.map_err(malformed)?)?;
    }
    for name in WORLD_EXPORTS {
        if !counts.exports.iter().any(|export| export == name) {
            return Err(Rejected::World(format!(
                "it does not export the function {name}"
            )));
        }
    }
    Validator::new_with_features(features())
        .validate_all(wasm)
        .map_err(malformed)?;
    Ok(())
}

/// What the runtime runs; it has the last word.
fn features() -> WasmFeatures {
    WasmFeatures::default()
        - WasmFeatures::MEMORY64
        - WasmFeatures::MULTI_MEMORY
        - WasmFeatures::THREADS
        - WasmFeatures::RELAXED_SIMD
        - WasmFeatures::EXCEPTIONS
        - WasmFeatures::GC
}

fn malformed(error: wasmparser::BinaryReaderError) -> Rejected {
    Rejected::Malformed(crate::log::printable(&error.to_string()))
}

fn at_most(what: &'static str, found: u64, allowed: u64) -> Result<(), Rejected> {
    if found > allowed {
        Err(Rejected::TooLarge {
            what,
            found,
            allowed,
        })
    } else {
        Ok(())
    }
}

/// What has been seen of a component, over all its nested parts.
#[derive(Default)]
struct Counts {
    memory_bytes_max: u64,
    depth: u64,
    modules: u64,
    components: u64,
    functions: u64,
    types: u64,
    entries: u64,
    data_bytes: u64,
    segments: u64,
    table_elements: u64,
    memory_bytes: u64,
    exports: Vec<String>, // of the outermost component, functions only
}

impl Counts {
    fn payload(&mut self, payload: &Payload<'_>) -> Result<(), Rejected> {
        match payload {
            Payload::Version { encoding, .. } => self.begin(*encoding),
            Payload::End(_) => {
                self.depth = self.depth.saturating_sub(1);
                Ok(())
            }

            Payload::ComponentImportSection(section) => self.imports(section),
            Payload::ComponentExportSection(section) => self.exports(section),
            Payload::ComponentTypeSection(section) => self.types(section.count()),
            Payload::CoreTypeSection(section) => self.types(section.count()),
            Payload::TypeSection(section) => self.types(section.count()),
            Payload::ComponentInstanceSection(section) => self.entries(section.count()),
            Payload::InstanceSection(section) => self.entries(section.count()),
            Payload::ComponentAliasSection(section) => self.entries(section.count()),
            Payload::ComponentCanonicalSection(section) => self.entries(section.count()),
            Payload::ImportSection(section) => self.entries(section.count()),
            Payload::ExportSection(section) => self.entries(section.count()),
            Payload::GlobalSection(section) => self.entries(section.count()),

            Payload::FunctionSection(section) => {
                self.functions += u64::from(section.count());
                at_most("the number of functions", self.functions, FUNCTIONS_MAX)
            }
            Payload::MemorySection(section) => self.memories(section),
            Payload::TableSection(section) => self.tables(section),
            Payload::ElementSection(section) => self.segments(section.count()),
            Payload::DataSection(section) => self.data(section),
            Payload::CodeSectionEntry(body) => check_body(body),
            Payload::CustomSection(section) => {
                let bytes = section.data().len() as u64;
                at_most("the size of a custom section", bytes, CUSTOM_BYTES_MAX)
            }
            _ => Ok(()),
        }
    }

    fn begin(&mut self, encoding: Encoding) -> Result<(), Rejected> {
        self.depth += 1;
        at_most("the depth of nested components", self.depth, NESTING_MAX)?;
        match encoding {
            Encoding::Module => self.modules += 1,
            Encoding::Component => self.components += 1,
        }
        at_most("the number of core modules", self.modules, MODULES_MAX)?;
        at_most(
            "the number of nested components",
            self.components,
            NESTED_COMPONENTS_MAX,
        )
    }

    fn imports(&mut self, section: &ComponentImportSectionReader<'_>) -> Result<(), Rejected> {
        self.entries(section.count())?;
        // Nested components are given what the outermost one imports.
        if self.depth != 1 {
            return Ok(());
        }
        for import in section.clone() {
            let import = import.map_err(malformed)?;
            // A world that names types of its imports imports those names too; they hold no function.
            if !matches!(import.ty, ComponentTypeRef::Type(TypeBounds::Eq(_))) {
                granted(import.name.name)?;
            }
        }
        Ok(())
    }

    fn exports(&mut self, section: &ComponentExportSectionReader<'_>) -> Result<(), Rejected> {
        self.entries(section.count())?;
        if self.depth != 1 {
            return Ok(());
        }
        for export in section.clone() {
            let export = export.map_err(malformed)?;
            if export.kind == ComponentExternalKind::Func {
                self.exports.push(export.name.name.to_owned());
            }
        }
        Ok(())
    }

    fn memories(&mut self, section: &MemorySectionReader<'_>) -> Result<(), Rejected> {
        for memory in section.clone() {
            let pages = memory.map_err(malformed)?.initial;
            let bytes = pages.saturating_mul(64 << 10);
            self.memory_bytes = self.memory_bytes.saturating_add(bytes);
            at_most(
                "the initial memory in bytes",
                self.memory_bytes,
                self.memory_bytes_max,
            )?;
        }
        Ok(())
    }

    fn tables(&mut self, section: &TableSectionReader<'_>) -> Result<(), Rejected> {
        for table in section.clone() {
            let initial = table.map_err(malformed)?.ty.initial;
            self.table_elements = self.table_elements.saturating_add(initial);
            at_most(
                "the number of table elements",
                self.table_elements,
                TABLE_ELEMENTS_MAX,
            )?;
        }
        Ok(())
    }

    fn data(&mut self, section: &DataSectionReader<'_>) -> Result<(), Rejected> {
        self.segments(section.count())?;
        for data in section.clone() {
            self.data_bytes += data.map_err(malformed)?.data.len() as u64;
            at_most(
                "the size of all data segments",
                self.data_bytes,
                DATA_BYTES_MAX,
            )?;
        }
        Ok(())
    }

    fn types(&mut self, count: u32) -> Result<(), Rejected> {
        self.types += u64::from(count);
        at_most("the number of types", self.types, TYPES_MAX)
    }

    fn entries(&mut self, count: u32) -> Result<(), Rejected> {
        self.entries += u64::from(count);
        at_most(
            "the number of imports, exports, aliases and instances",
            self.entries,
            ENTRIES_MAX,
        )
    }

    fn segments(&mut self, count: u32) -> Result<(), Rejected> {
        self.segments += u64::from(count);
        at_most("the number of segments", self.segments, SEGMENTS_MAX)
    }
}

fn granted(name: &str) -> Result<(), Rejected> {
    let wasi = GRANTED_WASI.iter().any(|prefix| name.starts_with(prefix)) && name.contains("@0.2.");
    if wasi || GRANTED.contains(&name) {
        return Ok(());
    }
    Err(Rejected::Import {
        name: crate::log::printable(name),
        granted: format!("{} and wasi 0.2", GRANTED.join(", ")),
    })
}

/// One function: what makes compilers slow is in here.
fn check_body(body: &wasmparser::FunctionBody<'_>) -> Result<(), Rejected> {
    let range = body.range();
    at_most(
        "the size of a function in bytes",
        range.len() as u64,
        BODY_BYTES_MAX,
    )?;
    let mut locals = 0;
    for local in body.get_locals_reader().map_err(malformed)? {
        locals += u64::from(local.map_err(malformed)?.0);
        at_most("the number of a function's locals", locals, LOCALS_MAX)?;
    }
    let mut depth = 0u64;
    for operator in body.get_operators_reader().map_err(malformed)? {
        match operator.map_err(malformed)? {
            Operator::Block { .. } | Operator::Loop { .. } | Operator::If { .. } => {
                depth += 1;
                at_most("the depth of nested blocks", depth, BLOCK_DEPTH_MAX)?;
            }
            Operator::End => depth = depth.saturating_sub(1),
            Operator::BrTable { targets } => {
                at_most(
                    "the number of a branch table's targets",
                    u64::from(targets.len()),
                    BRANCH_TABLE_MAX,
                )?;
            }
            _ => {}
        }
    }
    Ok(())
}
