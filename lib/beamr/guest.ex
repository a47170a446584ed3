defmodule Beamr.Guest do
  @moduledoc false
  # Finds what a `t:Beamr.guest/0` stands for. Memory is reached by a server's pid without the
  # server: the instance's reference is in the registry under the pid.

  # Matched as maps, because the struct's own module needs the guard below.
  alias Beamr.Instance

  @registry Beamr.Registry

  defguardp is_name(term)
            when (is_atom(term) and term not in [nil, true, false]) or
                   (is_tuple(term) and tuple_size(term) == 2 and
                      (elem(term, 0) == :global or
                         (is_atom(elem(term, 0)) and is_atom(elem(term, 1))))) or
                   (is_tuple(term) and tuple_size(term) == 3 and elem(term, 0) == :via and
                      is_atom(elem(term, 1)))

  @doc "Whether a term can address a guest. The guards of the public functions."
  defguard is_guest(term) when is_struct(term, Instance) or is_pid(term) or is_name(term)

  @type place :: {:instance, reference()} | {:remote, node(), Beamr.guest()}

  @doc "Makes the calling server findable, or puts another instance in its place."
  @spec register(Instance.t()) :: :ok
  def register(%{__struct__: Instance, ref: ref}) do
    case Registry.register(@registry, self(), ref) do
      {:ok, _owner} ->
        :ok

      {:error, {:already_registered, _self}} ->
        [{_self, old}] = Registry.lookup(@registry, self())
        {_new, _old} = Registry.update_value(@registry, self(), fn _old -> ref end)
        Beamr.Allocator.Regions.guest_gone(old)
    end
  end

  @doc """
  The reference of the guest's instance, or where else to look for it. Exits with `:noproc`, as
  `GenServer.call` does, where there is no such server.
  """
  @spec place(Beamr.guest(), {module(), atom(), list()}) :: place()
  def place(%{__struct__: Instance, ref: ref}, _mfa), do: {:instance, ref}

  def place(guest, mfa) do
    case server(guest, mfa) do
      pid when is_pid(pid) ->
        # The registry may take a moment to hear of a death.
        case Registry.lookup(@registry, pid) do
          [{^pid, ref}] ->
            if Process.alive?(pid), do: {:instance, ref}, else: exit({:noproc, mfa})

          [] ->
            exit({:noproc, mfa})
        end

      remote ->
        remote
    end
  end

  @doc "As `place/2`, but nil where there is no such server, or not yet."
  @spec find(Beamr.guest()) :: place() | nil
  def find(guest) do
    place(guest, {__MODULE__, :find, [guest]})
  catch
    :exit, {:noproc, _mfa} -> nil
  end

  @doc """
  Calls a function of the guest: in this process for an instance and inside a server's own
  imports, in the server otherwise. `unsigned` makes integer results unsigned.
  """
  @spec call(
          Beamr.guest(),
          String.t() | Beamr.funcref(),
          list(),
          timeout(),
          Instance.scheduler(),
          boolean()
        ) :: {:ok, list()} | {:error, Exception.t()}
  def call(%{__struct__: Instance} = instance, function, args, timeout, scheduler, unsigned) do
    Instance.call(instance, function, args, timeout, scheduler, unsigned)
  end

  def call(guest, function, args, timeout, scheduler, unsigned) do
    case server(guest, {Beamr, :call, [guest, function, args]}) do
      pid when pid == self() ->
        Beamr.Server.call_self(function, args, timeout, scheduler, unsigned)

      pid when is_pid(pid) ->
        unless server?(pid), do: exit({:noproc, {Beamr, :call, [guest, function, args]}})
        Beamr.Server.request(pid, function, args, timeout, scheduler, unsigned)

      {:remote, node, guest} ->
        args = [guest, function, args, timeout, scheduler, unsigned]
        remote_for_self(node, __MODULE__, :call, args)
    end
  end

  # Other processes are not sent what they do not understand. A server that is still making its
  # instance is not in the registry yet.
  defp server?(pid) do
    Registry.lookup(@registry, pid) != [] or
      with {:dictionary, dictionary} <- Process.info(pid, :dictionary) do
        dictionary[:"$initial_call"] == {Beamr.Server, :init, 1}
      end == true
  end

  @doc "As `remote/4`, for what calls the guest: the calling process's death ends it there."
  @spec remote_for_self(node(), module(), atom(), list()) :: term()
  def remote_for_self(node, module, function, args) do
    remote(node, __MODULE__, :apply_for, [self(), module, function, args])
  end

  @doc false
  # On the guest's node, on behalf of a process elsewhere: if that dies, so does this one, which
  # ends the call.
  @spec apply_for(pid(), module(), atom(), list()) :: term()
  def apply_for(client, module, function, args) do
    proxy = self()

    spawn(fn ->
      client = Process.monitor(client)
      done = Process.monitor(proxy)

      receive do
        {:DOWN, ^client, :process, _pid, _reason} -> Process.exit(proxy, :kill)
        {:DOWN, ^done, :process, _pid, _reason} -> :ok
      end
    end)

    apply(module, function, args)
  end

  defp server(pid, _mfa) when is_pid(pid) and node(pid) == node(), do: pid
  defp server(pid, _mfa) when is_pid(pid), do: {:remote, node(pid), pid}

  defp server(name, mfa) do
    case GenServer.whereis(name) do
      nil -> exit({:noproc, mfa})
      pid when is_pid(pid) -> server(pid, mfa)
      {name, node} when node == node() -> server(name, mfa)
      {name, node} -> {:remote, node, name}
    end
  end

  @doc "Applies a function on the guest's node, as if it had been called there."
  @spec remote(node(), module(), atom(), list()) :: term()
  def remote(node, module, function, args) do
    :erpc.call(node, module, function, args)
  catch
    :error, {:erpc, reason} -> exit({{:nodedown, node, reason}, {module, function, args}})
    :error, {:exception, reason, _stacktrace} -> :erlang.error(reason)
    :exit, {:exception, reason} -> exit(reason)
    :exit, {:signal, reason} -> exit(reason)
  end
end
