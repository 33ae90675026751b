//! Uses its reply after ending it, in every way there is.

use realm_guest::{Description, Error, Model, Reply, Request, Run, StopReason, Workflow};

struct Guest;

impl Workflow for Guest {
    fn describe() -> Description {
        Description::new().chat().completion().function(
            "go",
            "Does it.",
            realm_guest::json::json!({}),
        )
    }

    fn handle(request: Request, reply: Reply) -> Result<(), Error> {
        reply.text(0, "said")?;
        reply.finish(0, StopReason::EndOfTurn)?;
        let mut refused = 0;
        refused += u32::from(reply.text(0, "more").is_err());
        refused += u32::from(reply.finish(0, StopReason::EndOfTurn).is_err());
        refused += u32::from(reply.text(7, "elsewhere").is_err());
        refused += u32::from(reply.json(&realm_guest::json::json!(1)).is_err());
        let model = Model::open(&request.model())?;
        let sequence = model.sequence()?;
        refused += u32::from(sequence.tokens(5, 9).is_err());
        refused += u32::from(sequence.rewind(99).is_err());
        refused += u32::from(sequence.append(&[u32::MAX]).is_err());
        refused += u32::from(Model::open("no such model").is_err());
        refused += u32::from(Run::start(&[]).is_err());
        refused +=
            u32::from(Run::start(&[(&sequence, &request.policy().temperature(f32::NAN))]).is_err());
        if refused == 10 {
            Ok(())
        } else {
            Err(Error::Internal(format!(
                "only {refused} of 10 were refused"
            )))
        }
    }
}

realm_guest::workflow!(Guest);
