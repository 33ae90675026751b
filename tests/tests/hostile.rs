//! Components that attack, on the real server: each ends in its stated error within its budget, while another tenant's
//! stream goes on and says what it always says.
#![forbid(unsafe_code)]

use anyhow::{Context, Result};
use realm_tests::paths;
use realm_tests::server::{MODEL, Server, Tenant, chat_body};
use serde_json::json;

/// Small budgets, so that the tests are short. The wall is far off: it also holds for the neighbour, and no guest here
/// should get that far on however busy a machine.
const LIMITS: &str = "[limits]\ncpu_ms_max = 400\nwall_ms_max = 60000\nmemory_mib_max = 128\n";
/// What each guest's caller is told: status and code. More than one where the guest can meet two limits first.
const GUESTS: &[(&str, u16, &[&str])] = &[
    ("loop_forever", 422, &["cpu_budget_exceeded"]),
    ("hostcall_flood", 422, &["cpu_budget_exceeded"]),
    ("log_flood", 422, &["cpu_budget_exceeded"]),
    ("never_read", 422, &["cpu_budget_exceeded"]),
    (
        "write_forever",
        422,
        &["cpu_budget_exceeded", "reply_too_large"],
    ),
    ("allocate_forever", 422, &["memory_limit_exceeded"]),
    ("recurse_forever", 422, &["stack_overflow"]),
    ("trap", 422, &["guest_trap"]),
    ("fork_bomb", 422, &["handle_limit_exceeded"]),
    ("handle_flood", 422, &["handle_limit_exceeded"]),
    ("huge_string", 422, &["argument_limit_exceeded"]),
    ("never_reply", 422, &["no_reply"]),
];

fn server() -> Result<(Server, Tenant, Tenant)> {
    let server = Server::start_configured(LIMITS)?;
    let (attacker, neighbour) = (server.tenant("attacker")?, server.tenant("neighbour")?);
    Ok((server, attacker, neighbour))
}

/// Streams one answer for the neighbour; its text.
fn neighbour_stream(neighbour: &Tenant) -> Result<String> {
    let mut body = chat_body(MODEL, "Tell me about the history of Rome.", 40);
    body["stream"] = json!(true);
    let mut stream = neighbour.http.stream("/v1/chat/completions", &body)?;
    stream.text()
}

#[test]
fn a_hostile_guest_gets_its_typed_error_and_its_neighbour_notices_nothing() -> Result<()> {
    let (mut server, attacker, neighbour) = server()?;
    let undisturbed = neighbour_stream(&neighbour)?;
    for (guest, ..) in GUESTS {
        server
            .deploy("attacker", guest, &paths::guest(guest)?)
            .context(*guest)?;
    }
    for (guest, status, codes) in GUESTS {
        let (reply, beside) = std::thread::scope(|scope| {
            let beside = scope.spawn(|| neighbour_stream(&neighbour));
            let reply = attacker
                .http
                .post("/v1/chat/completions", &chat_body(guest, "Go on", 2000));
            (reply, beside.join().expect("no panic beside"))
        });
        let reply = reply.with_context(|| format!("calling {guest}"))?;
        println!("{guest}: {} {}", reply.status, reply.error_code());
        assert_eq!(reply.status, *status, "{guest}: {}", reply.text);
        assert!(
            codes.contains(&reply.error_code().as_str()),
            "{guest}: {}",
            reply.text
        );
        let text = beside.with_context(|| format!("beside {guest}"))?;
        assert_eq!(text, undisturbed, "beside {guest}");
    }
    assert!(server.is_alive()?);
    let errors = server
        .metrics()?
        .sum_where("realm_guest_errors_total", &[("tenant", "attacker")]);
    assert!(
        errors >= Some(GUESTS.len() as f64),
        "each is counted: {errors:?}"
    );
    server.until_idle()
}

#[test]
fn all_of_them_at_once_leave_the_neighbour_alone_too() -> Result<()> {
    let (mut server, attacker, neighbour) = server()?;
    let undisturbed = neighbour_stream(&neighbour)?;
    for (guest, ..) in GUESTS {
        server
            .deploy("attacker", guest, &paths::guest(guest)?)
            .context(*guest)?;
    }
    std::thread::scope(|scope| {
        for (guest, ..) in GUESTS {
            let attacker = &attacker;
            scope.spawn(move || {
                let reply = attacker
                    .http
                    .post("/v1/chat/completions", &chat_body(guest, "Go on", 2000));
                let reply = reply.expect("an answer, whatever it says");
                assert!(
                    reply.status >= 400 && !reply.error_code().is_empty(),
                    "{guest}: {}",
                    reply.text
                );
            });
        }
        let text = neighbour_stream(&neighbour).expect("the neighbour's stream goes on");
        assert_eq!(text, undisturbed);
    });
    assert!(server.is_alive()?);
    server.until_idle()?;
    assert_eq!(neighbour_stream(&neighbour)?, undisturbed);
    Ok(())
}

#[test]
fn a_client_that_never_reads_stops_only_its_own_guest() -> Result<()> {
    let (mut server, attacker, neighbour) = server()?;
    let undisturbed = neighbour_stream(&neighbour)?;
    server.deploy("attacker", "write_forever", &paths::guest("write_forever")?)?;
    let mut body = chat_body("write_forever", "Go on", 100);
    body["stream"] = json!(true);
    let unread = attacker.http.stream("/v1/chat/completions", &body)?;
    assert_eq!(neighbour_stream(&neighbour)?, undisturbed);
    drop(unread);
    assert!(server.is_alive()?);
    server.until_idle()
}

#[test]
fn what_cannot_be_a_workflow_is_refused_at_upload_and_says_why() -> Result<()> {
    let (mut server, attacker, _) = server()?;
    let module = b"\0asm\x01\0\0\0".to_vec();
    let truncated = paths::prebuilt("passthrough")?[..30_000].to_vec();
    let cases = [
        ("bad_describe", paths::guest("bad_describe")?, "describe"),
        (
            "loop_in_describe",
            paths::guest("loop_in_describe")?,
            "processor time",
        ),
        (
            "ungranted_import",
            paths::guest("ungranted_import")?,
            "other:host/secrets",
        ),
        ("core_module", module, "component"),
        ("truncated", truncated, "component"),
        ("text", b"no wasm at all".to_vec(), "component"),
        ("empty", Vec::new(), "component"),
    ];
    let artifacts = server.data().path().join("artifacts");
    let kept = || -> Result<usize> { Ok(std::fs::read_dir(&artifacts)?.count()) };
    let before = kept()?;
    for (name, wasm, why) in cases {
        let reply = server.upload("attacker", "refused", &wasm)?;
        assert!(
            [400, 422].contains(&reply.status),
            "{name}: {} {}",
            reply.status,
            reply.text
        );
        assert!(
            reply.text.contains(why),
            "{name} should say {why:?}: {}",
            reply.text
        );
    }
    assert_eq!(kept()?, before, "what was compiled of them is not kept");
    let listed = server
        .admin()
        .get("/admin/v1/tenants/attacker/workflows")?
        .ok()?;
    assert!(
        !listed.to_string().contains("refused"),
        "a refused upload leaves nothing: {listed}"
    );
    let reply = attacker
        .http
        .post("/v1/chat/completions", &chat_body("refused", "Hello", 1))?;
    assert_eq!(reply.status, 404);
    assert!(server.is_alive()?);
    Ok(())
}

#[test]
fn misuse_of_handles_is_refused_call_by_call() -> Result<()> {
    let (server, attacker, _) = server()?;
    server.deploy("attacker", "use_after_end", &paths::guest("use_after_end")?)?;
    let reply = attacker
        .http
        .post(
            "/v1/chat/completions",
            &chat_body("use_after_end", "Go on", 5),
        )?
        .ok()?;
    assert_eq!(reply["choices"][0]["message"]["content"], "said");
    server.until_idle()
}
