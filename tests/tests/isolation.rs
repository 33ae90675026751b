//! What one tenant has, another can neither use nor see.
#![forbid(unsafe_code)]

use anyhow::Result;
use realm_tests::http::Http;
use realm_tests::server::{MODEL, Server, chat_body};
use realm_tests::{paths, socket::Socket};
use serde_json::{Value, json};

fn models(http: &Http) -> Result<Vec<String>> {
    let listed = http.get("/v1/models")?.ok()?;
    let ids = listed["data"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|model| model["id"].as_str());
    Ok(ids.map(str::to_owned).collect())
}

fn chat_status(http: &Http, model: &str) -> Result<(u16, String)> {
    let reply = http.post("/v1/chat/completions", &chat_body(model, "Hello", 2))?;
    Ok((reply.status, reply.error_code()))
}

#[test]
fn a_workflow_belongs_to_its_tenant_alone() -> Result<()> {
    let server = Server::start()?;
    let (acme, globex) = (server.tenant("acme")?, server.tenant("globex")?);
    server.deploy("acme", "secret-sauce", &paths::prebuilt("passthrough")?)?;

    assert_eq!(chat_status(&acme.http, "secret-sauce")?.0, 200);
    assert_eq!(
        chat_status(&globex.http, "secret-sauce")?,
        (404, "model_not_found".to_owned())
    );
    assert_eq!(chat_status(&globex.http, "acme/secret-sauce")?.0, 404);
    assert!(models(&acme.http)?.contains(&"secret-sauce".to_owned()));
    assert_eq!(
        models(&globex.http)?,
        [MODEL],
        "the other tenant sees the base model only"
    );

    // A name is the tenant's own: the same one may stand for something else, and taking it away touches nobody else.
    server.deploy("globex", "secret-sauce", &paths::prebuilt("passthrough")?)?;
    server.admin().delete("/admin/v1/tenants/globex")?.ok()?;
    assert_eq!(chat_status(&acme.http, "secret-sauce")?.0, 200);
    Ok(())
}

#[test]
fn a_revoked_key_and_a_deleted_tenant_are_refused_at_once() -> Result<()> {
    let server = Server::start()?;
    let (acme, globex) = (server.tenant("acme")?, server.tenant("globex")?);
    let second = server.key("acme")?;
    assert_eq!(chat_status(&second.http, MODEL)?.0, 200);
    server
        .admin()
        .delete(&format!("/admin/v1/tenants/acme/keys/{}", second.key_id))?
        .ok()?;
    assert_eq!(chat_status(&second.http, MODEL)?.0, 401);
    assert_eq!(
        chat_status(&acme.http, MODEL)?.0,
        200,
        "the tenant's other key still works"
    );

    server.admin().delete("/admin/v1/tenants/acme")?.ok()?;
    assert_eq!(chat_status(&acme.http, MODEL)?.0, 401);
    assert_eq!(acme.http.get("/v1/models")?.status, 401);
    assert_eq!(chat_status(&globex.http, MODEL)?.0, 200);
    Ok(())
}

#[test]
fn each_plane_takes_its_own_keys_only() -> Result<()> {
    let server = Server::start()?;
    let acme = server.tenant("acme")?;
    let token = realm_tests::server::ADMIN_TOKEN;
    assert_eq!(chat_status(&server.http(None), MODEL)?.0, 401);
    assert_eq!(
        chat_status(&server.http(Some(token)), MODEL)?.0,
        401,
        "the operator is no tenant"
    );
    for key in [None, Some(acme.key.as_str()), Some("wrong")] {
        let stranger = Http::new(server.admin().base(), key);
        assert_eq!(stranger.get("/admin/v1/tenants")?.status, 401);
        assert_eq!(
            stranger
                .post("/admin/v1/tenants", &json!({"name": "mine"}))?
                .status,
            401
        );
    }
    assert_eq!(
        acme.http.get("/admin/v1/tenants")?.status,
        404,
        "the admin plane is not on the data port"
    );
    let listed = server
        .admin()
        .get("/admin/v1/tenants/acme/keys")?
        .ok()?
        .to_string();
    assert!(
        !listed.contains(&acme.key),
        "a key is shown once, when it is made"
    );
    Ok(())
}

/// Call ids are a connection's own: the same id elsewhere is another call.
#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_cannot_cancel_another_tenants_call() -> Result<()> {
    let server = Server::start()?;
    let (acme, globex) = (server.tenant("acme")?, server.tenant("globex")?);
    let mut victim = Socket::connect(server.url(), Some(&acme.key)).await?;
    let mut stranger = Socket::connect(server.url(), Some(&globex.key)).await?;
    let params =
        json!({"model": MODEL, "prompt": "Once upon a time", "max_tokens": 40, "temperature": 0});
    victim
        .send(&json!({"id": "call-1", "function": "generate", "params": params}))
        .await?;
    let first = victim.frame().await?;
    assert_eq!(
        (&first["id"], &first["status"]),
        (&json!("call-1"), &json!("streaming"))
    );
    stranger
        .send(&json!({"id": "call-1", "cancel": true}))
        .await?;
    let refused = stranger.frame().await?;
    assert_eq!(refused["status"], "error", "{refused}");
    let last: Value = victim.finish("call-1").await?;
    assert_eq!(last["status"], "complete", "{last}");
    Ok(())
}
