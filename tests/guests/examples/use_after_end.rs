//! Uses its reply after ending it, in every way there is.

use realm_guest::json::json;
use realm_guest::{Description, Error, Model, Reply, Request, Run, StopReason, Workflow};

struct Guest;

impl Workflow for Guest {
    fn describe() -> Description {
        Description::new()
            .chat()
            .completion()
            .function("go", "Does it.", json!({}))
    }

    fn handle(request: Request, reply: Reply) -> Result<(), Error> {
        reply.text(0, "said")?;
        reply.finish(0, StopReason::EndOfTurn)?;
        let model = Model::open(&request.model())?;
        let sequence = model.sequence()?;
        let not_a_number = request.policy().temperature(f32::NAN);
        let refused = [
            ("text after the end", reply.text(0, "more").is_err()),
            (
                "a second end",
                reply.finish(0, StopReason::EndOfTurn).is_err(),
            ),
            ("another choice", reply.text(7, "elsewhere").is_err()),
            ("json in a chat", reply.json(&json!(1)).is_err()),
            ("tokens that are not there", sequence.tokens(5, 9).is_err()),
            ("rewinding forwards", sequence.rewind(99).is_err()),
            ("no such token", sequence.append(&[u32::MAX]).is_err()),
            ("no such model", Model::open("no such model").is_err()),
            ("a run of nothing", Run::start(&[]).is_err()),
            (
                "not a number",
                Run::start(&[(&sequence, &not_a_number)]).is_err(),
            ),
        ];
        for (what, was_refused) in refused {
            if !was_refused {
                return Err(Error::Internal(format!("not refused: {what}")));
            }
        }
        Ok(())
    }
}

realm_guest::workflow!(Guest);
