defmodule Beamr.ReadmeTest do
  # What the README shows in Erlang is run as it stands there. (Its Elixir is a doctest of Beamr.)
  use ExUnit.Case, async: false

  @blocks Regex.scan(~r/```erlang\n(.*?)```/s, File.read!("README.md"), capture: :all_but_first)
          |> List.flatten()

  setup_all do
    [session, supervisor] = @blocks
    {:ok, session: String.to_charlist(session), supervisor: String.to_charlist(supervisor)}
  end

  test "the session matches at every line", %{session: session} do
    {:ok, tokens, _end} = :erl_scan.string(session)
    {:ok, expressions} = :erl_parse.parse_exprs(tokens)
    assert {:value, :ok, bindings} = :erl_eval.exprs(expressions, [])
    assert Keyword.has_key?(bindings, :Wasm)
  end

  test "the supervisor starts a guest, and starts it again", %{supervisor: source} do
    compile(source)
    wat = ~s|(module (func (export "add") (param i32 i32) (result i32)
               (i32.add (local.get 0) (local.get 1))))|

    {:ok, supervisor} = apply(:guests_sup, :start_link, [wat])
    assert :beamr.call(:calculator, "add", [1, 2]) == {:ok, [3]}

    guest = Process.whereis(:calculator)
    monitor = Process.monitor(guest)
    Process.exit(guest, :kill)
    assert_receive {:DOWN, ^monitor, :process, ^guest, :killed}
    # The supervisor has started it again once it answers.
    assert [{:calculator, _pid, :worker, _modules}] = :supervisor.which_children(supervisor)
    assert :beamr.call(:calculator, "add", [1, 2]) == {:ok, [3]}
    Supervisor.stop(supervisor)
  end

  defp compile(source) do
    {:ok, tokens, _end} = :erl_scan.string(source)

    forms =
      tokens
      |> Enum.chunk_while([], &chunk/2, fn [] -> {:cont, []} end)
      |> Enum.map(fn tokens -> tokens |> :erl_parse.parse_form() |> elem(1) end)

    {:ok, module, binary} = :compile.forms(forms)
    {:module, ^module} = :code.load_binary(module, ~c"guests_sup.erl", binary)
  end

  # A form ends with a dot.
  defp chunk({:dot, _line} = dot, tokens), do: {:cont, Enum.reverse([dot | tokens]), []}
  defp chunk(token, tokens), do: {:cont, [token | tokens]}
end
