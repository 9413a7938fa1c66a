//! Whether an expression is made of an argument: whether it reads the variable of that name.
//!
//! A field, a method or a binding of the same name is another thing, and a key that was taken for one
//! with the argument in it would give one caller the result of another. In doubt a name is not read:
//! then the compiler says so, and nobody gets anything.

use proc_macro2::{Spacing, TokenStream, TokenTree};
use syn::punctuated::Punctuated;
use syn::visit::{self, Visit};
use syn::{
    Arm, BinOp, Block, Expr, ExprAssign, ExprClosure, ExprForLoop, ExprIf, ExprLet, ExprMatch,
    ExprPath, ExprWhile, Item, Local, Macro, Pat, PatIdent, Path, Stmt, Token,
};

/// Whether `expression` reads the variable `name`.
pub(crate) fn reads(expression: &Expr, name: &str) -> bool {
    search(expression, name, Sought::Variable)
}

/// Whether `expression` names the type or constant `name` that the function is generic over.
pub(crate) fn names_parameter(expression: &Expr, name: &str) -> bool {
    search(expression, name, Sought::Parameter)
}

fn search(expression: &Expr, name: &str, sought: Sought) -> bool {
    let mut search = Search {
        name,
        sought,
        found: false,
    };
    search.visit_expr(expression);
    search.found
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sought {
    /// It stands alone.
    Variable,
    /// It stands alone or begins a path, as a type does in `T::NAME`.
    Parameter,
}

struct Search<'a> {
    name: &'a str,
    sought: Sought,
    found: bool,
}

impl Search<'_> {
    /// Whether a pattern gives the name to something else.
    fn is_bound(&self, pattern: &Pat) -> bool {
        let mut bindings = Bindings {
            name: self.name,
            found: false,
        };
        bindings.visit_pat(pattern);
        bindings.found
    }

    /// Visits a condition as far as the name means what is sought; `true` if a `let` in it gives the
    /// name to something else.
    fn rebinds(&mut self, condition: &Expr) -> bool {
        match condition {
            Expr::Let(bound) => {
                self.visit_expr(&bound.expr);
                self.is_bound(&bound.pat)
            }
            Expr::Binary(both) if matches!(both.op, BinOp::And(_)) => {
                self.rebinds(&both.left) || self.rebinds(&both.right)
            }
            other => {
                self.visit_expr(other);
                false
            }
        }
    }
}

impl<'ast> Visit<'ast> for Search<'_> {
    fn visit_expr_path(&mut self, path: &'ast ExprPath) {
        self.found |= path.qself.is_none() && path.path.is_ident(self.name);
        visit::visit_expr_path(self, path);
    }

    fn visit_path(&mut self, path: &'ast Path) {
        let first = path.segments.first();
        let begins = first.is_some_and(|first| first.ident == self.name);
        self.found |= self.sought == Sought::Parameter && path.leading_colon.is_none() && begins;
        visit::visit_path(self, path);
    }

    fn visit_expr_closure(&mut self, closure: &'ast ExprClosure) {
        if !closure.inputs.iter().any(|input| self.is_bound(input)) {
            visit::visit_expr_closure(self, closure);
        }
    }

    fn visit_block(&mut self, block: &'ast Block) {
        for statement in &block.stmts {
            self.visit_stmt(statement);
            if matches!(statement, Stmt::Local(Local { pat, .. }) if self.is_bound(pat)) {
                return;
            }
        }
    }

    /// Items see no variables.
    fn visit_item(&mut self, _item: &'ast Item) {}

    fn visit_arm(&mut self, arm: &'ast Arm) {
        if !self.is_bound(&arm.pat) {
            visit::visit_arm(self, arm);
        }
    }

    fn visit_expr_match(&mut self, choice: &'ast ExprMatch) {
        self.visit_expr(&choice.expr);
        choice.arms.iter().for_each(|arm| self.visit_arm(arm));
    }

    fn visit_expr_if(&mut self, choice: &'ast ExprIf) {
        if !self.rebinds(&choice.cond) {
            self.visit_block(&choice.then_branch);
        }
        if let Some((_, otherwise)) = &choice.else_branch {
            self.visit_expr(otherwise);
        }
    }

    fn visit_expr_while(&mut self, repeated: &'ast ExprWhile) {
        if !self.rebinds(&repeated.cond) {
            self.visit_block(&repeated.body);
        }
    }

    fn visit_expr_let(&mut self, bound: &'ast ExprLet) {
        self.visit_expr(&bound.expr);
    }

    fn visit_expr_for_loop(&mut self, repeated: &'ast ExprForLoop) {
        self.visit_expr(&repeated.expr);
        if !self.is_bound(&repeated.pat) {
            self.visit_block(&repeated.body);
        }
    }

    /// What is written is not read. In a macro this is the name of an argument of its own.
    fn visit_expr_assign(&mut self, assignment: &'ast ExprAssign) {
        if !matches!(*assignment.left, Expr::Path(_)) {
            self.visit_expr(&assignment.left);
        }
        self.visit_expr(&assignment.right);
    }

    fn visit_macro(&mut self, call: &'ast Macro) {
        match call.parse_body_with(Punctuated::<Expr, Token![,]>::parse_terminated) {
            // They live as long as this call, and so no longer than the tree that is visited.
            Ok(arguments) => {
                let mut inside = Search { ..*self };
                arguments
                    .iter()
                    .for_each(|argument| inside.visit_expr(argument));
                self.found |= inside.found;
            }
            Err(_) => self.found |= stands_alone(call.tokens.clone(), self.name),
        }
    }
}

struct Bindings<'a> {
    name: &'a str,
    found: bool,
}

impl<'ast> Visit<'ast> for Bindings<'_> {
    fn visit_pat_ident(&mut self, binding: &'ast PatIdent) {
        self.found |= binding.ident == self.name;
        visit::visit_pat_ident(self, binding);
    }
}

/// Whether a name stands somewhere in what a macro takes as it likes, other than as a field or a
/// method of something, or before what it is a name for.
fn stands_alone(tokens: TokenStream, name: &str) -> bool {
    let tokens: Vec<_> = tokens.into_iter().collect();
    let is = |token: Option<&TokenTree>, sign: char| matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == sign);
    let is_double = |token: Option<&TokenTree>| matches!(token, Some(TokenTree::Punct(punct)) if punct.spacing() == Spacing::Joint);
    tokens.iter().enumerate().any(|(at, token)| match token {
        TokenTree::Ident(ident) if ident == name => {
            let before = |steps| at.checked_sub(steps).and_then(|at| tokens.get(at));
            let next = tokens.get(at + 1);
            let is_member = is(before(1), '.') && !is(before(2), '.');
            let is_label = is(next, ':') || (is(next, '=') && !is_double(next));
            !is_member && !is_label
        }
        TokenTree::Group(group) => stands_alone(group.stream(), name),
        _ => false,
    })
}
