//! `kill -9` at random points during uploads: whatever was acknowledged is there and intact after the restart.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use realm_tests::paths;
use realm_tests::server::{DataDir, Server, chat_body};
use rustix::process::Signal;
use sha2::{Digest, Sha256};
use std::time::{Duration, Instant};

const KILLS: u32 = 16;
/// The kill falls at a random moment of the time that so many uploads take here, after the first began.
const UPLOADS_BEFORE_KILL: u32 = 6;
const SEED: u64 = 0x5eed_0002;
const TENANT: &str = "acme";

/// An upload the server said yes to.
struct Acknowledged {
    workflow: String,
    version: u64,
    digest: String, // sha256 of what was sent, in hex
}

#[test]
fn no_acknowledged_upload_is_lost_when_the_process_is_killed() -> Result<()> {
    let component = paths::prebuilt("passthrough")?;
    let data = DataDir::new()?;
    let mut random = Rng::with_seed(SEED); // the same kills every time
    let mut acknowledged: Vec<Acknowledged> = Vec::new();
    let mut active: Active = None; // the version whose activation was acknowledged last
    let mut serial = 0;

    let mut server = Server::start_with(data.clone(), &[])?;
    let key = server.tenant(TENANT)?.key;
    let began = Instant::now();
    let (first, activated) = upload(&server, &component, &mut serial)?;
    acknowledged.push(first.context("nobody has killed it yet")?);
    active = activated.or(active);
    let span = began.elapsed() * UPLOADS_BEFORE_KILL;
    for round in 0..KILLS {
        let after = random.u64(..u64::try_from(span.as_micros())?);
        let kill_at = Instant::now() + Duration::from_micros(after);
        std::thread::scope(|scope| -> Result<()> {
            let uploads = scope.spawn(|| upload_until_gone(&server, &component, &mut serial));
            std::thread::sleep(kill_at.saturating_duration_since(Instant::now()));
            server.signal(Signal::KILL)?;
            let (said_yes, activated) = uploads.join().expect("no panic while uploading")?;
            acknowledged.extend(said_yes);
            active = activated.or(active.take());
            Ok(())
        })?;
        server.kill()?; // already dead: this reaps it
        server = Server::start_with(data.clone(), &[])?;
        check_all(&server, &acknowledged)
            .with_context(|| format!("after kill {round}, seed {SEED:#x}"))?;
        if let Some((workflow, version)) = &active {
            let listed = server
                .admin()
                .get(&format!("/admin/v1/tenants/{TENANT}/workflows"))?
                .ok()?;
            let found = listed_workflow(&listed, workflow)
                .with_context(|| format!("{workflow} in {listed}"))?;
            assert!(
                found["active"].as_u64() >= Some(*version),
                "version {version} was made active: {found}"
            );
            let reply = server
                .http(Some(&key))
                .post("/v1/chat/completions", &chat_body(workflow, "Hello", 2))?;
            reply
                .ok()
                .with_context(|| format!("calling {workflow} after kill {round}"))?;
        }
    }
    println!(
        "{KILLS} kills, {} uploads acknowledged of {serial} begun, none lost",
        acknowledged.len()
    );
    ensure!(
        acknowledged.len() >= KILLS as usize / 2,
        "the kills left too few uploads to mean anything"
    );
    call_every_version(&server, &key, &acknowledged)
}

/// A workflow and the version of it whose activation was acknowledged.
type Active = Option<(String, u64)>;

/// Uploads and activates new versions one after the other until the server is gone.
fn upload_until_gone(
    server: &Server,
    component: &[u8],
    serial: &mut u32,
) -> Result<(Vec<Acknowledged>, Active)> {
    let (mut said_yes, mut active) = (Vec::new(), None);
    loop {
        let (uploaded, activated) = upload(server, component, serial)?;
        active = activated.or(active);
        let Some(uploaded) = uploaded else {
            return Ok((said_yes, active));
        };
        said_yes.push(uploaded);
    }
}

/// Uploads and activates one new version. Nothing is what a server that is gone says; what it refuses is an error.
fn upload(
    server: &Server,
    component: &[u8],
    serial: &mut u32,
) -> Result<(Option<Acknowledged>, Active)> {
    *serial += 1;
    let workflow = format!("flow-{}", *serial % 3);
    let wasm = with_custom_section(component, &serial.to_le_bytes());
    let Ok(reply) = server.upload(TENANT, &workflow, &wasm) else {
        return Ok((None, None));
    };
    let made = reply.ok().context("a live server takes the upload")?;
    let version = made["version"]
        .as_u64()
        .context("an acknowledgement names its version")?;
    let acknowledged = Acknowledged {
        workflow: workflow.clone(),
        version,
        digest: hex(&wasm),
    };
    let path = format!("/admin/v1/tenants/{TENANT}/workflows/{workflow}/activate");
    let Ok(reply) = server
        .admin()
        .post(&path, &serde_json::json!({"version": version}))
    else {
        return Ok((Some(acknowledged), None));
    };
    reply.ok().context("a live server activates it")?;
    Ok((Some(acknowledged), Some((workflow, version))))
}

/// Every acknowledged version is listed with its digest, and its bytes on the disk have that digest.
fn check_all(server: &Server, acknowledged: &[Acknowledged]) -> Result<()> {
    let listed = server
        .admin()
        .get(&format!("/admin/v1/tenants/{TENANT}/workflows"))?
        .ok()?;
    for upload in acknowledged {
        let workflow = listed_workflow(&listed, &upload.workflow)
            .with_context(|| format!("{} is lost", upload.workflow))?;
        let versions = workflow["versions"]
            .as_array()
            .context("a workflow lists its versions")?;
        let version = versions
            .iter()
            .find(|version| version["version"] == upload.version);
        let version = version
            .with_context(|| format!("{} version {} is lost", upload.workflow, upload.version))?;
        assert_eq!(
            version["digest"], upload.digest,
            "{} version {}",
            upload.workflow, upload.version
        );
        let blob = server
            .data()
            .path()
            .join("blobs")
            .join(format!("{}.wasm", upload.digest));
        let bytes = std::fs::read(&blob).with_context(|| format!("{}", blob.display()))?;
        assert_eq!(hex(&bytes), upload.digest, "{} is spoilt", blob.display());
    }
    Ok(())
}

/// Activates and calls every version: what is listed also runs.
fn call_every_version(server: &Server, key: &str, acknowledged: &[Acknowledged]) -> Result<()> {
    let http = server.http(Some(key));
    for Acknowledged {
        workflow, version, ..
    } in acknowledged
    {
        let path = format!("/admin/v1/tenants/{TENANT}/workflows/{workflow}/activate");
        server
            .admin()
            .post(&path, &serde_json::json!({"version": version}))?
            .ok()?;
        let reply = http.post("/v1/chat/completions", &chat_body(workflow, "Hello", 1))?;
        reply
            .ok()
            .with_context(|| format!("calling {workflow} version {version}"))?;
    }
    Ok(())
}

fn listed_workflow<'a>(listed: &'a serde_json::Value, name: &str) -> Option<&'a serde_json::Value> {
    let list = listed["workflows"]
        .as_array()
        .or_else(|| listed.as_array())?;
    list.iter().find(|workflow| workflow["name"] == name)
}

/// The same component with other bytes: a custom section at the end changes the digest and nothing else.
fn with_custom_section(component: &[u8], content: &[u8; 4]) -> Vec<u8> {
    let mut wasm = component.to_vec();
    wasm.extend([0, 6, 1, b'n']); // section id, size in bytes, length of the name, the name
    wasm.extend(content);
    wasm
}

fn hex(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}
