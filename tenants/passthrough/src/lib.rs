//! The plain model: what a chat or a completion runs when the tenant has no workflow of its own.
//!
//! Several choices share one prefilled prompt: it is forked, not repeated. The host streams all of them to the client
//! while this program sleeps.

use realm_guest::{Description, Error, Kind, Model, Reply, Request, Run, Workflow};

struct Passthrough;

impl Workflow for Passthrough {
    fn describe() -> Description {
        Description::new().chat().completion()
    }

    fn handle(request: Request, reply: Reply) -> Result<(), Error> {
        if request.kind() == Kind::Function {
            return Err(Error::Unsupported(
                "this workflow exports no functions".into(),
            ));
        }
        let model = Model::open(&request.model())?;
        let choices = request.choices();

        let sequence = model.sequence()?;
        request.append_to(&sequence)?;
        reply.prompt_logprobs(&sequence)?;
        let sequences = sequence.split(choices)?;

        if request.echo() {
            for choice in 0..choices {
                reply.echo(choice)?;
            }
        }
        reply.forward(Run::start_all(&sequences, &request.policy())?)?;
        Ok(())
    }
}

realm_guest::workflow!(Passthrough);
